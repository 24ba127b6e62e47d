// LangChain: a stream, a tool that is called and answered, and an answer in a shape of your own.
// PARVIS_URL=http://127.0.0.1:8080 PARVIS_API_KEY=… node examples/langchain.mjs
import { HumanMessage, ToolMessage } from '@langchain/core/messages'
import { tool } from '@langchain/core/tools'
import { ChatOpenAI } from '@langchain/openai'
import { z } from 'zod'

const chat = new ChatOpenAI({
  model: process.env.PARVIS_MODEL ?? 'tiny-chat',
  apiKey: process.env.PARVIS_API_KEY,
  configuration: { baseURL: `${process.env.PARVIS_URL ?? 'http://127.0.0.1:8080'}/v1` },
  temperature: 0,
  maxTokens: 100,
})

process.stdout.write('streamed: ')
for await (const chunk of await chat.stream('What is the capital of France?')) process.stdout.write(chunk.text)
console.log()

const weather = tool(({ city }) => `21 degrees in ${city}`, {
  name: 'weather',
  description: 'The weather in a city',
  schema: z.object({ city: z.string().max(20) }),
})
const question = new HumanMessage('What is the weather in Paris?')
const asked = await chat.bindTools([weather], { tool_choice: 'weather' }).invoke([question])
const [call] = asked.tool_calls
console.log('called:', call.name, call.args)
const result = new ToolMessage({ tool_call_id: call.id, content: await weather.invoke(call.args) })
const answered = await chat.invoke([question, asked, result])
console.log('answered:', answered.response_metadata.finish_reason)

const Place = z.object({ city: z.string().max(20), inhabitants: z.int().min(0).max(99_999_999) })
const parsed = await chat.withStructuredOutput(Place, { name: 'place', method: 'jsonSchema' }).invoke('Tell me of Rome.')
console.log('parsed:', parsed)
