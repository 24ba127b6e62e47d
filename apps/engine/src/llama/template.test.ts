import { readFileSync } from 'node:fs'
import { getLlama, LlamaLogLevel } from 'node-llama-cpp'
import { beforeAll, describe, expect, test } from 'vitest'
import { type ChatTemplate, openTemplate, TemplateError } from './template.ts'

const source = readFileSync(new URL('../../../../models/tiny-chat/chat_template.jinja', import.meta.url), 'utf8')
const values = {
  messages: [
    { role: 'system', content: 'Be kind.' },
    { role: 'user', content: 'Grüße \uE0000\uE001 "quoted"' },
    { role: 'assistant', content: '', tool_calls: [{ type: 'function', function: { name: 'f', arguments: { city: 'Köln' } } }] },
    { role: 'tool', content: '{"ok": true}' },
  ],
  tools: [{ type: 'function', function: { name: 'f', description: 'dé \uE0001\uE001', parameters: { type: 'object', properties: {} } } }],
  add_generation_prompt: true,
  bos_token: '',
  eos_token: '<|im_end|>',
}

let llama: object
beforeAll(async () => {
  llama = await getLlama({ gpu: false, build: 'never', skipDownload: true, maxThreads: 1, logLevel: LlamaLogLevel.error })
})

test("llama.cpp's own renderer is found inside the library", () => {
  expect(openTemplate(llama, source).renderer).toBe('llama.cpp')
})

test('without it the other renderer steps in, and both write the same', () => {
  const other = openTemplate({}, source)
  expect(other.renderer).toBe('jinja')
  expect(other.render(values)).toBe(openTemplate(llama, source).render(values))
  expect(other.render({ ...values, tools: null })).toBe(openTemplate(llama, source).render({ ...values, tools: null }))
})

describe.each(['llama.cpp', 'jinja'])('%s', (renderer) => {
  const open = (text: string): ChatTemplate => openTemplate(renderer === 'jinja' ? {} : llama, text)

  test('marks for a user’s text come through untouched, in tools as well', () => {
    const rendered = open(source).render(values)
    expect(rendered).toContain('Grüße \uE0000\uE001')
    expect(rendered).toContain('\uE0001\uE001')
  })

  test('what a template raises is said in its own words', () => {
    const template = open("{{ raise_exception('Conversation roles must alternate') }}")
    expect(() => template.render(values)).toThrow(new TemplateError('Conversation roles must alternate'))
  })
})

test('a template that nobody can compile is a fault when it is opened', () => {
  expect(() => openTemplate(llama, '{% if %}')).toThrow('Unexpected token')
})
