// Vercel's AI SDK with its openai-compatible provider: a stream, a tool that is called, and an answer in a shape of your own.
// PARVIS_URL=http://127.0.0.1:8080 PARVIS_API_KEY=… node examples/ai-sdk.mjs
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateText, Output, stepCountIs, streamText, tool } from 'ai'
import { z } from 'zod'

const parvis = createOpenAICompatible({
  name: 'parvis',
  baseURL: `${process.env.PARVIS_URL ?? 'http://127.0.0.1:8080'}/v1`,
  apiKey: process.env.PARVIS_API_KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
})
const model = parvis(process.env.PARVIS_MODEL ?? 'tiny-chat')

process.stdout.write('streamed: ')
const streamed = streamText({ model, temperature: 0, prompt: 'What is the capital of France?' })
for await (const text of streamed.textStream) process.stdout.write(text)
console.log(` (${(await streamed.usage).totalTokens} tokens)`)

const weather = tool({
  description: 'The weather in a city',
  inputSchema: z.object({ city: z.string().max(20) }),
  execute: ({ city }) => `21 degrees in ${city}`,
})
const called = await generateText({
  model,
  temperature: 0,
  maxOutputTokens: 60,
  prompt: 'What is the weather in Paris?',
  tools: { weather },
  toolChoice: 'required',
  stopWhen: stepCountIs(2),
})
const [first] = called.steps
console.log('called:', first.toolCalls[0].toolName, first.toolCalls[0].input)
console.log('answered:', first.toolResults[0].output, 'after', called.steps.length, 'steps')

const { output } = await generateText({
  model,
  prompt: 'Tell me of Rome.',
  output: Output.object({ schema: z.object({ city: z.string().max(20), inhabitants: z.int().min(0).max(99_999_999) }) }),
})
console.log('parsed:', output)
