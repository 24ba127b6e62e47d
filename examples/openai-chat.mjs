// Chat with OpenAI's SDK: a stream, a tool that is called and answered, and an answer in a shape of your own.
// PARVIS_URL=http://127.0.0.1:8080 PARVIS_API_KEY=… node examples/openai-chat.mjs
import OpenAI from 'openai'
import { zodResponseFormat } from 'openai/helpers/zod'
import { z } from 'zod'

const client = new OpenAI({ baseURL: `${process.env.PARVIS_URL ?? 'http://127.0.0.1:8080'}/v1`, apiKey: process.env.PARVIS_API_KEY })
const model = process.env.PARVIS_MODEL ?? 'tiny-chat'

const stream = await client.chat.completions.create({
  model,
  temperature: 0,
  messages: [{ role: 'user', content: 'What is the capital of France?' }],
  stream: true,
  stream_options: { include_usage: true },
})
process.stdout.write('streamed: ')
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta.content ?? '')
  // The last chunk has no choices, and the usage.
  if (chunk.usage) process.stdout.write(` (${chunk.usage.total_tokens} tokens)\n`)
}

const tools = [
  {
    type: 'function',
    function: {
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
  },
]
const messages = [{ role: 'user', content: 'What is the weather in Paris?' }]
const asked = await client.chat.completions.create({ model, messages, tools, tool_choice: 'required', temperature: 0 })
const { message } = asked.choices[0]
const [call] = message.tool_calls
console.log('called:', call.function.name, JSON.parse(call.function.arguments))
messages.push(message, { role: 'tool', tool_call_id: call.id, content: '{"celsius":21}' })
const answered = await client.chat.completions.create({ model, messages, tools, tool_choice: 'none', temperature: 0, max_tokens: 40 })
console.log('answered:', answered.choices[0].finish_reason)

const Place = z.object({ city: z.string().max(20), inhabitants: z.int().min(0).max(99_999_999) })
const parsed = await client.chat.completions.parse({
  model,
  messages: [{ role: 'user', content: 'Tell me of Rome.' }],
  response_format: zodResponseFormat(Place, 'place'),
})
console.log('parsed:', parsed.choices[0].message.parsed)
