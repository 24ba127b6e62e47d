import { fileURLToPath } from 'node:url'
import { getLlama, type Llama, LlamaGrammar, LlamaGrammarEvaluationState, type LlamaModel } from 'node-llama-cpp'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { openToolParser, type ToolFormat } from '../output/tool-calls.ts'
import { toolGrammar } from './tools.ts'

let llama: Llama
let model: LlamaModel

beforeAll(async () => {
  llama = await getLlama({ gpu: false, build: 'never', skipDownload: true, maxThreads: 1 })
  model = await llama.loadModel({ modelPath: fileURLToPath(new URL('../../../../models/tiny-chat/tiny-chat-q8_0.gguf', import.meta.url)) })
})
afterAll(() => llama.dispose())

const TOOLS = [
  {
    name: 'get_weather',
    parameters: {
      type: 'object',
      properties: {
        city: { type: 'string', enum: ['Paris', 'Rome'] },
        days: { type: 'integer', minimum: 1, maximum: 9 },
        note: { type: 'string', pattern: '^[a-z]{1,4}$' },
      },
      required: ['city'],
    },
  },
  { name: 'get_time', parameters: undefined },
]

const FORMATS: readonly ToolFormat[] = ['hermes', 'llama3', 'mistral', 'qwen3-coder', 'deepseek', 'functionary']

const made = (format: ToolFormat, choice: 'required' | { name: string }, parallel: boolean) => {
  const grammar = toolGrammar(format, TOOLS, choice, parallel)
  if (!grammar.ok) throw new Error(grammar.reason)
  return new LlamaGrammar(llama, { grammar: grammar.gbnf })
}
const accepts = (grammar: LlamaGrammar, text: string) => (grammar as unknown as { _testText(text: string): boolean })._testText(text)

const ARGUMENTS = '{"city": "Paris", "days": 3}'
const CALL = `{"name": "get_weather", "arguments": ${ARGUMENTS}}`
const TIME = '{"name": "get_time", "arguments": {}}'

/** One call and two calls as each family writes them. */
const WRITTEN: readonly { format: ToolFormat; one: string; two: string }[] = [
  {
    format: 'hermes',
    one: `<tool_call>\n${CALL}\n</tool_call>`,
    two: `<tool_call>\n${CALL}\n</tool_call>\n<tool_call>\n${TIME}\n</tool_call>`,
  },
  {
    format: 'llama3',
    one: `{"name": "get_weather", "parameters": ${ARGUMENTS}}`,
    two: `{"name": "get_weather", "parameters": ${ARGUMENTS}}; {"name": "get_time", "parameters": {}}`,
  },
  { format: 'mistral', one: `[TOOL_CALLS][${CALL}]`, two: `[TOOL_CALLS] [${CALL}, ${TIME}]` },
  {
    format: 'mistral',
    one: `[TOOL_CALLS]get_weather[ARGS]${ARGUMENTS}`,
    two: `[TOOL_CALLS]get_weather[ARGS]${ARGUMENTS}[TOOL_CALLS]get_time[ARGS]{}`,
  },
  {
    format: 'qwen3-coder',
    one: '<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>',
    two: '<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=get_time>\n</function>\n</tool_call>',
  },
  {
    format: 'deepseek',
    one: `<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n\`\`\`json\n${ARGUMENTS}\n\`\`\`<｜tool▁call▁end｜><｜tool▁calls▁end｜>`,
    two: `<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>${ARGUMENTS}<｜tool▁call▁end｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>`,
  },
  { format: 'functionary', one: `get_weather\n${ARGUMENTS}`, two: `get_weather\n${ARGUMENTS}>>>get_time\n{}` },
  {
    format: 'functionary',
    one: `<function=get_weather>${ARGUMENTS}</function>`,
    two: `<function=get_weather>${ARGUMENTS}</function><function=get_time>{}</function>`,
  },
]

const callsIn = (format: ToolFormat, text: string) => {
  const parser = openToolParser(format, TOOLS)
  const pieces = [...parser.push(text), ...parser.end()]
  return {
    names: pieces.flatMap((piece) => (piece.kind === 'call' ? [piece.name] : [])),
    arguments: pieces.flatMap((piece) => (piece.kind === 'arguments' ? [JSON.parse(piece.text) as unknown] : [])),
    content: pieces.flatMap((piece) => (piece.kind === 'content' ? [piece.text] : [])).join(''),
  }
}

describe.each(WRITTEN)('$format: $one', ({ format, one, two }) => {
  test('is what the grammar allows and the parser reads', () => {
    expect(accepts(made(format, 'required', false), one)).toBe(true)
    expect(accepts(made(format, { name: 'get_weather' }, false), one)).toBe(true)
    expect(accepts(made(format, { name: 'get_time' }, false), one)).toBe(false)
    expect(accepts(made(format, 'required', false), two)).toBe(false)
    expect(accepts(made(format, 'required', true), two)).toBe(true)
    expect(accepts(made(format, 'required', true), one)).toBe(true)
    expect(accepts(made(format, 'required', true), one.replace('Paris', 'Berlin'))).toBe(false)
    expect(accepts(made(format, 'required', true), `Well, ${one}`)).toBe(false)
    expect(callsIn(format, one)).toEqual({ names: ['get_weather'], arguments: [{ city: 'Paris', days: 3 }], content: '' })
    expect(callsIn(format, two)).toEqual({ names: ['get_weather', 'get_time'], arguments: [{ city: 'Paris', days: 3 }, {}], content: '' })
  })
})

test('a real model under the grammar of any family writes a call that the parser of the family reads', async () => {
  const context = await model.createContext({ contextSize: 512, sequences: 1, threads: 1 })
  const sequence = context.getSequence()
  const prompt = model.tokenize('<|im_start|>user\nWhat is the weather in Paris?<|im_end|>\n<|im_start|>assistant\n', true)
  for (const format of FORMATS) {
    for (const seed of [1, 2, 3]) {
      await sequence.clearHistory()
      const grammarEvaluationState = new LlamaGrammarEvaluationState({ model, grammar: made(format, { name: 'get_weather' }, false) })
      const tokens = []
      for await (const token of sequence.evaluate(prompt, { temperature: 1, topK: 0, topP: 1, minP: 0, seed, grammarEvaluationState })) {
        tokens.push(token)
        if (tokens.length > 250) break
      }
      const text = model.detokenize(tokens, true)
      const { names, arguments: given, content } = callsIn(format, text)
      expect([format, text, names, content]).toEqual([format, text, ['get_weather'], ''])
      expect([text, given]).toEqual([text, [expect.objectContaining({ city: expect.stringMatching(/^(Paris|Rome)$/) as string })]])
    }
  }
  await context.dispose()
})

describe('what cannot be kept is refused by name', () => {
  const tool = (parameters: unknown, name = 'f') => [{ name, parameters }]
  type Refusal = [string, ToolFormat, { name: string; parameters: unknown }[], 'required' | { name: string }]
  test.each<Refusal>([
    ['there is no tool to call', 'hermes', [], 'required'],
    ['there is no tool "g"', 'hermes', tool({}), { name: 'g' }],
    ['"a b" cannot be the name of a tool', 'hermes', tool({}, 'a b'), 'required'],
    ['the parameters of the tool "f": #/properties/a/not: ', 'hermes', tool({ properties: { a: { not: {} } } }), 'required'],
    ...(['hermes', 'llama3', 'mistral', 'deepseek', 'functionary', 'qwen3-coder'] as const).map(
      (format): Refusal => [
        'the parameters of the tool "f": #/properties/a/minLength: cannot be kept',
        format,
        tool({ properties: { a: { type: 'string', minLength: 1_000_000_000 } } }),
        'required',
      ],
    ),
    ['the parameters of the tool "f": #: no type fits', 'llama3', tool({ type: 'string' }), 'required'],
    ['the parameters of the tool "f": #/anyOf: ', 'qwen3-coder', tool({ anyOf: [{}] }), 'required'],
    [
      'the parameters of the tool "f": #/properties/a/pattern: back-references',
      'qwen3-coder',
      tool({ properties: { a: { type: 'string', pattern: '(a)\\1' } } }),
      'required',
    ],
    [
      'the parameters of the tool "f": #/required: there is no property "b"',
      'qwen3-coder',
      tool({ properties: {}, required: ['b'] }),
      'required',
    ],
  ])('%s', (reason, format, tools, choice) => {
    const grammar = toolGrammar(format, tools, choice, true)
    expect(grammar.ok ? 'accepted' : grammar.reason).toContain(reason)
  })
})

test('text written bare may hold anything but its own end', () => {
  const grammar = toolGrammar(
    'qwen3-coder',
    [{ name: 'f', parameters: { properties: { a: { type: 'string' } }, required: ['a'] } }],
    'required',
    false,
  )
  const allowed = new LlamaGrammar(llama, { grammar: grammar.ok ? grammar.gbnf : '' })
  const call = (text: string) => `<tool_call>\n<function=f>\n<parameter=a>\n${text}\n</parameter>\n</function>\n</tool_call>`
  for (const text of ['', 'if (a < b) { "x" }\n</param', 'ü\n\n😀']) expect([text, accepts(allowed, call(text))]).toEqual([text, true])
  expect(accepts(allowed, call('a</parameter>b'))).toBe(false)
})
