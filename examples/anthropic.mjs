// Anthropic's SDK: a stream, a tool that is called and answered, and an answer by a schema.
// PARVIS_URL=http://127.0.0.1:8080 PARVIS_API_KEY=… node examples/anthropic.mjs
import Anthropic from '@anthropic-ai/sdk'

const client = new Anthropic({ baseURL: process.env.PARVIS_URL ?? 'http://127.0.0.1:8080', apiKey: process.env.PARVIS_API_KEY })
const model = process.env.PARVIS_MODEL ?? 'tiny-chat'

const stream = client.messages.stream({
  model,
  max_tokens: 50,
  temperature: 0,
  messages: [{ role: 'user', content: 'What is the capital of France?' }],
})
process.stdout.write('streamed: ')
stream.on('text', (text) => process.stdout.write(text))
const { usage } = await stream.finalMessage()
console.log(` (${usage.input_tokens} and ${usage.output_tokens} tokens)`)

const tools = [
  {
    name: 'weather',
    description: 'The weather in a city',
    input_schema: { type: 'object', properties: { city: { type: 'string', maxLength: 20 } }, required: ['city'] },
  },
]
const messages = [{ role: 'user', content: 'What is the weather in Paris?' }]
const asked = await client.messages.create({ model, max_tokens: 100, temperature: 0, messages, tools, tool_choice: { type: 'any' } })
const call = asked.content.find((block) => block.type === 'tool_use')
console.log('called:', call.name, call.input)
messages.push(
  { role: 'assistant', content: asked.content },
  { role: 'user', content: [{ type: 'tool_result', tool_use_id: call.id, content: '{"celsius":21}' }] },
)
const answered = await client.messages.create({ model, max_tokens: 40, temperature: 0, messages, tools, tool_choice: { type: 'none' } })
console.log('answered:', answered.stop_reason)

const schema = {
  type: 'object',
  properties: { city: { type: 'string', maxLength: 20 } },
  required: ['city'],
  additionalProperties: false,
}
const shaped = await client.messages.create({
  model,
  max_tokens: 100,
  messages: [{ role: 'user', content: 'Name a city.' }],
  output_config: { format: { type: 'json_schema', schema } },
})
console.log('parsed:', JSON.parse(shaped.content[0].text))
