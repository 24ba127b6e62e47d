// The Responses API with OpenAI's SDK: a stream, a function that is called and answered, and an answer in a shape of your own.
// PARVIS_URL=http://127.0.0.1:8080 PARVIS_API_KEY=… node examples/openai-responses.mjs
import OpenAI from 'openai'
import { zodTextFormat } from 'openai/helpers/zod'
import { z } from 'zod'

const client = new OpenAI({ baseURL: `${process.env.PARVIS_URL ?? 'http://127.0.0.1:8080'}/v1`, apiKey: process.env.PARVIS_API_KEY })
const model = process.env.PARVIS_MODEL ?? 'tiny-chat'

const stream = await client.responses.create({ model, input: 'What is the capital of France?', temperature: 0, stream: true })
process.stdout.write('streamed: ')
for await (const event of stream) {
  if (event.type === 'response.output_text.delta') process.stdout.write(event.delta)
  if (event.type === 'response.completed') process.stdout.write(` (${event.response.usage?.total_tokens} tokens)\n`)
}

const tools = [
  {
    type: 'function',
    name: 'weather',
    description: 'The weather in a city',
    parameters: {
      type: 'object',
      properties: { city: { type: 'string', maxLength: 20 } },
      required: ['city'],
      additionalProperties: false,
    },
    strict: true,
  },
]
const input = [{ role: 'user', content: 'What is the weather in Paris?' }]
const asked = await client.responses.create({ model, input, tools, tool_choice: 'required', temperature: 0 })
const call = asked.output.find((item) => item.type === 'function_call')
console.log('called:', call.name, JSON.parse(call.arguments))
input.push(...asked.output, { type: 'function_call_output', call_id: call.call_id, output: '{"celsius":21}' })
const answered = await client.responses.create({ model, input, tools, tool_choice: 'none', temperature: 0, max_output_tokens: 40 })
console.log('answered:', answered.status)

const Place = z.object({ city: z.string().max(20), inhabitants: z.int().min(0).max(99_999_999) })
const parsed = await client.responses.parse({ model, input: 'Tell me of Rome.', text: { format: zodTextFormat(Place, 'place') } })
console.log('parsed:', parsed.output_parsed)
