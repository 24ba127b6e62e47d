import { readFileSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type EngineProcess, joined, startEngine, user } from '../test/engine-process.ts'

const PATH = '/v1/chat/completions'
const question = { temperature: 0, messages: user('What is the capital of France?') }

// The tiny model does not think. A template that has already opened and closed the tag, or only opened it, shows both sides of the split.
const plain = readFileSync(new URL('../../../models/tiny-chat/chat_template.jinja', import.meta.url), 'utf8')
const THINKING = `{#- answers begin with <think> and </think> -#}${plain}{% if enable_thinking is not defined or enable_thinking %}{{ '<think>' }}{% endif %}`

let folder = ''
let engine: EngineProcess
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'engine-'))
  await writeFile(join(folder, 'thinking.jinja'), THINKING)
  engine = await startEngine('tiny-chat', ['--context', '1024', '--sequences', '2', '--chat-template', join(folder, 'thinking.jinja')])
})
afterAll(async () => {
  await engine.stop()
  await rm(folder, { recursive: true })
})

test('what a model thinks stands beside its answer under both names, and its tokens are counted', async () => {
  const { choices, usage } = await engine.ask(PATH, { ...question, ignore_eos: true, max_tokens: 20 })
  const { message } = choices[0]
  expect(message.content).toBeNull()
  expect(message.reasoning.length).toBeGreaterThan(10)
  expect(message.reasoning_content).toBe(message.reasoning)
  expect(usage.completion_tokens_details.reasoning_tokens).toBeGreaterThanOrEqual(usage.completion_tokens - 1)
  const chunks = await engine.stream(PATH, { ...question, ignore_eos: true, max_tokens: 20 })
  expect(joined(chunks, 'reasoning')).toBe(message.reasoning)
  expect(joined(chunks, 'reasoning_content')).toBe(message.reasoning)
  expect(joined(chunks, 'content')).toBe('')
})

test.each([[{ reasoning_effort: 'none' }], [{ chat_template_kwargs: { enable_thinking: false } }]])('%j switches it off', async (off) => {
  const { choices, usage } = await engine.ask(PATH, { ...question, ...off })
  expect(choices[0].message).toMatchObject({ content: 'The capital of France is Paris.', reasoning: null, reasoning_content: null })
  expect(usage.completion_tokens_details.reasoning_tokens).toBe(0)
})

test('a schema does not bind what a model thinks, only what it answers', async () => {
  const format = { response_format: { type: 'json_schema', json_schema: { name: 'n', schema: { type: 'object', properties: {} } } } }
  const thinking = await engine.ask(PATH, { ...question, ...format, ignore_eos: true, max_tokens: 20 })
  expect(thinking.choices[0].message.reasoning).not.toContain('{')
  const answering = await engine.ask(PATH, { ...question, ...format, reasoning_effort: 'none', max_tokens: 60 })
  expect(answering.choices[0].message.content.trimStart()).toMatch(/^\{/)
})
