import { cpuMs } from '@parvis/testkit/cpu'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type KnownTool, openToolParser, type ToolFormat, toolFormat } from './tool-calls.ts'

type Found = { content: string; calls: { name: string; arguments: string }[] }

/** Runs the parser as a client of the stream would: it adds up what comes, and holds the rules of the stream against it. */
const run = (format: ToolFormat, pieces: readonly string[], tools: readonly KnownTool[] = []): Found => {
  const parser = openToolParser(format, tools)
  const found: Found = { content: '', calls: [] }
  for (const piece of [...pieces.flatMap((text) => parser.push(text)), ...parser.end()]) {
    if (piece.kind === 'content') {
      expect(piece.text).not.toBe('')
      found.content += piece.text
    } else if (piece.kind === 'call') {
      expect(piece.index).toBe(found.calls.length)
      found.calls.push({ name: piece.name, arguments: '' })
    } else {
      const call = found.calls[piece.index]
      if (call === undefined) throw new Error('arguments before their call')
      call.arguments += piece.text
    }
  }
  for (const call of found.calls) expect(JSON.parse(call.arguments)).toBeTypeOf('object')
  return found
}

type Row = { name: string; format: ToolFormat; text: string; content?: string; calls?: [string, unknown][]; tools?: KnownTool[] }

const WEATHER = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}'
const PARIS: [string, unknown] = ['get_weather', { city: 'Paris', days: 3 }]
const TIME: [string, unknown] = ['get_time', {}]
const CODE_TOOLS = [
  {
    name: 'write_file',
    parameters: {
      type: 'object',
      properties: {
        path: { type: 'string' },
        text: { type: 'string' },
        mode: { type: 'integer' },
        tags: { type: 'array' },
        note: { anyOf: [{ type: 'string' }, { type: 'null' }] },
      },
    },
  },
]

const TABLE: readonly Row[] = [
  // Hermes
  { name: 'one call', format: 'hermes', text: `<tool_call>\n${WEATHER}\n</tool_call>`, calls: [PARIS] },
  {
    name: 'text before',
    format: 'hermes',
    text: `Let me look.\n\n<tool_call>\n${WEATHER}\n</tool_call>\n`,
    content: 'Let me look.',
    calls: [PARIS],
  },
  {
    name: 'two calls',
    format: 'hermes',
    text: `<tool_call>\n${WEATHER}\n</tool_call>\n<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>`,
    calls: [PARIS, TIME],
  },
  {
    name: 'no line breaks',
    format: 'hermes',
    text: `<tool_call>${WEATHER}</tool_call><tool_call>${WEATHER}</tool_call>`,
    calls: [PARIS, PARIS],
  },
  { name: 'without an end', format: 'hermes', text: `<tool_call>\n${WEATHER}`, calls: [PARIS] },
  {
    name: 'marks inside a string',
    format: 'hermes',
    text: '<tool_call>{"name": "say", "arguments": {"text": "a </tool_call> <tool_call> \\" }"}}</tool_call>',
    calls: [['say', { text: 'a </tool_call> <tool_call> " }' }]],
  },
  { name: 'no arguments', format: 'hermes', text: '<tool_call>{"name": "get_time"}</tool_call>', calls: [TIME] },
  {
    name: 'arguments as text',
    format: 'hermes',
    text: '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 3}"}</tool_call>',
    calls: [PARIS],
  },
  {
    name: 'the shape of the API',
    format: 'hermes',
    text: `<tool_call>{"type": "function", "function": ${WEATHER}}</tool_call>`,
    calls: [PARIS],
  },
  { name: 'text after', format: 'hermes', text: `<tool_call>${WEATHER}</tool_call>\nDone.`, content: '\nDone.', calls: [PARIS] },
  {
    name: 'broken JSON',
    format: 'hermes',
    text: '<tool_call>\n{"name": "a", "arguments": {"b": }}\n</tool_call>',
    content: '<tool_call>\n{"name": "a", "arguments": {"b": }}\n</tool_call>',
  },
  {
    name: 'a missing brace',
    format: 'hermes',
    text: '<tool_call>\n{"name": "a", "arguments": {"b": 1}\n</tool_call>',
    content: '<tool_call>\n{"name": "a", "arguments": {"b": 1}\n</tool_call>',
  },
  {
    name: 'cut in the middle',
    format: 'hermes',
    text: 'Hm. <tool_call>\n{"name": "a", "argu',
    content: 'Hm. <tool_call>\n{"name": "a", "argu',
  },
  {
    name: 'no name',
    format: 'hermes',
    text: '<tool_call>{"arguments": {}}</tool_call>',
    content: '<tool_call>{"arguments": {}}</tool_call>',
  },
  {
    name: 'arguments that are a list',
    format: 'hermes',
    text: '<tool_call>{"name": "a", "arguments": [1]}</tool_call>',
    content: '<tool_call>{"name": "a", "arguments": [1]}</tool_call>',
  },
  {
    name: 'a broken call and a good one',
    format: 'hermes',
    text: `<tool_call>oops</tool_call>\n<tool_call>${WEATHER}</tool_call>`,
    content: '<tool_call>oops</tool_call>',
    calls: [PARIS],
  },
  { name: 'no call', format: 'hermes', text: ' Just <b>text</b>.\n', content: ' Just <b>text</b>.\n' },
  { name: 'nothing', format: 'hermes', text: '', content: '' },
  // Llama 3
  { name: 'one call', format: 'llama3', text: '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}', calls: [PARIS] },
  {
    name: 'with the type of the API',
    format: 'llama3',
    text: '{"type": "function", "name": "get_weather", "parameters": {"city": "Paris", "days": 3}}',
    calls: [PARIS],
  },
  { name: 'after the tag', format: 'llama3', text: `<|python_tag|>${WEATHER}`, calls: [PARIS] },
  { name: 'text before the tag', format: 'llama3', text: `Let me see. <|python_tag|>${WEATHER}`, content: 'Let me see.', calls: [PARIS] },
  { name: 'two calls', format: 'llama3', text: `${WEATHER}; {"name": "get_time", "parameters": {}}`, calls: [PARIS, TIME] },
  { name: 'a list of calls', format: 'llama3', text: `[${WEATHER}, {"name": "get_time", "parameters": {}}]`, calls: [PARIS, TIME] },
  { name: 'code after the tag', format: 'llama3', text: '<|python_tag|>print("hi")', content: '<|python_tag|>print("hi")' },
  { name: 'an answer in JSON', format: 'llama3', text: '{"city": "Paris"}', content: '{"city": "Paris"}' },
  {
    name: 'an answer in text',
    format: 'llama3',
    text: 'The object {"name": "x", "parameters": {}} is an example.',
    content: 'The object {"name": "x", "parameters": {}} is an example.',
  },
  { name: 'a list of others', format: 'llama3', text: '[1, 2]', content: '[1, 2]' },
  { name: 'broken JSON', format: 'llama3', text: '{"name": "x", "parameters": {"a": 1', content: '{"name": "x", "parameters": {"a": 1' },
  { name: 'a separator without a call', format: 'llama3', text: `${WEATHER}; and so on`, content: '; and so on', calls: [PARIS] },
  // Mistral
  { name: 'the list', format: 'mistral', text: `[TOOL_CALLS][${WEATHER}]`, calls: [PARIS] },
  {
    name: 'the list with space, two calls',
    format: 'mistral',
    text: `[TOOL_CALLS] [${WEATHER}, {"name": "get_time", "arguments": {}, "id": "abc123def"}]`,
    calls: [PARIS, TIME],
  },
  { name: 'by name', format: 'mistral', text: '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 3}', calls: [PARIS] },
  {
    name: 'by name, twice',
    format: 'mistral',
    text: '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 3}[TOOL_CALLS]get_time[ARGS]{}',
    calls: [PARIS, TIME],
  },
  {
    name: 'by name and id',
    format: 'mistral',
    text: '[TOOL_CALLS]get_weather[CALL_ID]Ab3dE6gh9[ARGS]{"city": "Paris", "days": 3}',
    calls: [PARIS],
  },
  {
    name: 'by name without a mark',
    format: 'mistral',
    text: 'Sure.[TOOL_CALLS]get_weather{"city": "Paris", "days": 3}',
    content: 'Sure.',
    calls: [PARIS],
  },
  {
    name: 'a broken list',
    format: 'mistral',
    text: `[TOOL_CALLS][${WEATHER}, {"no": "name"}]`,
    content: `[TOOL_CALLS][${WEATHER}, {"no": "name"}]`,
  },
  {
    name: 'a name without arguments',
    format: 'mistral',
    text: '[TOOL_CALLS]get_time and so on',
    content: '[TOOL_CALLS]get_time and so on',
  },
  { name: 'an answer with brackets', format: 'mistral', text: 'See [TOOL] and [1].', content: 'See [TOOL] and [1].' },
  // Qwen3-Coder
  {
    name: 'values without quotes',
    format: 'qwen3-coder',
    tools: CODE_TOOLS,
    text: '<tool_call>\n<function=write_file>\n<parameter=path>\n/tmp/a\n</parameter>\n<parameter=text>\nif (a < b) {\n  "x"\n}\n\n</parameter>\n<parameter=mode>\n420\n</parameter>\n<parameter=tags>\n["a", 1]\n</parameter>\n</function>\n</tool_call>',
    calls: [['write_file', { path: '/tmp/a', text: 'if (a < b) {\n  "x"\n}\n', mode: 420, tags: ['a', 1] }]],
  },
  {
    name: 'a number that is a text',
    format: 'qwen3-coder',
    tools: CODE_TOOLS,
    text: '<tool_call><function=write_file><parameter=path>42</parameter><parameter=note>true</parameter></function></tool_call>',
    calls: [['write_file', { path: '42', note: 'true' }]],
  },
  {
    name: 'null where it may be',
    format: 'qwen3-coder',
    tools: CODE_TOOLS,
    text: '<tool_call><function=write_file><parameter=note>null</parameter></function></tool_call>',
    calls: [['write_file', { note: null }]],
  },
  {
    name: 'without a schema',
    format: 'qwen3-coder',
    text: '<tool_call><function=f><parameter=a>42</parameter><parameter=b>True</parameter><parameter=c>some text</parameter></function></tool_call>',
    calls: [['f', { a: 42, b: true, c: 'some text' }]],
  },
  {
    name: 'no parameters, two calls, text before',
    format: 'qwen3-coder',
    text: 'Now:\n<tool_call>\n<function=get_time>\n</function>\n</tool_call>\n<tool_call>\n<function=get_time>\n</function>\n</tool_call>',
    content: 'Now:',
    calls: [TIME, TIME],
  },
  { name: 'without the frame', format: 'qwen3-coder', text: '<function=get_time>\n</function>', calls: [TIME] },
  {
    name: 'an end inside a value',
    format: 'qwen3-coder',
    text: '<tool_call><function=f><parameter=a></function></parameter></function></tool_call>',
    calls: [['f', { a: '</function>' }]],
  },
  {
    name: 'a value without an end',
    format: 'qwen3-coder',
    text: '<tool_call><function=f><parameter=a>1</function></tool_call>',
    content: '<tool_call><function=f><parameter=a>1</function></tool_call>',
  },
  // DeepSeek
  {
    name: 'with a fence',
    format: 'deepseek',
    text: '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{"city": "Paris", "days": 3}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    calls: [PARIS],
  },
  {
    name: 'two with a fence, text before',
    format: 'deepseek',
    text: 'Hm.\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{"city": "Paris", "days": 3}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    content: 'Hm.',
    calls: [PARIS, TIME],
  },
  {
    name: 'without a fence',
    format: 'deepseek',
    text: '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris", "days": 3}<｜tool▁call▁end｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    calls: [PARIS, TIME],
  },
  {
    name: 'cut',
    format: 'deepseek',
    text: '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": ',
    content: '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": ',
  },
  {
    name: 'a frame without a call',
    format: 'deepseek',
    text: '<｜tool▁calls▁begin｜>nothing<｜tool▁calls▁end｜>',
    content: '<｜tool▁calls▁begin｜>nothing<｜tool▁calls▁end｜>',
  },
  // Functionary
  { name: 'v3.2, begun by the prompt', format: 'functionary', text: 'get_weather\n{"city": "Paris", "days": 3}', calls: [PARIS] },
  {
    name: 'v3.2, two calls',
    format: 'functionary',
    text: '>>>get_weather\n{"city": "Paris", "days": 3}>>>get_time\n{}',
    calls: [PARIS, TIME],
  },
  { name: 'v3.2, text', format: 'functionary', text: 'all\nHello there.', content: 'Hello there.' },
  {
    name: 'v3.2, text and a call',
    format: 'functionary',
    text: '>>>all\nOne moment.\n>>>get_time\n{}',
    content: 'One moment.',
    calls: [TIME],
  },
  {
    name: 'v3.1',
    format: 'functionary',
    text: 'Sure: <function=get_weather>{"city": "Paris", "days": 3}</function><function=get_time>{}</function>',
    content: 'Sure:',
    calls: [PARIS, TIME],
  },
  { name: 'plain text', format: 'functionary', text: 'Hello\nthere {}', content: 'Hello\nthere {}' },
  {
    name: 'a word that is no tool',
    format: 'functionary',
    text: 'Example\n{}',
    content: 'Example\n{}',
    tools: [{ name: 'get_time', parameters: {} }],
  },
  {
    name: 'broken arguments',
    format: 'functionary',
    text: '<function=get_time>{"a": }</function>',
    content: '<function=get_time>{"a": }</function>',
  },
]

describe.each(TABLE)('$format: $name', ({ format, text, content = '', calls = [], tools = [] }) => {
  test('is read as what it is, whole or by the character', () => {
    for (const pieces of [[text], Array.from(text)]) {
      const found = run(format, pieces, tools)
      expect({ content: found.content, calls: found.calls.map((call) => [call.name, JSON.parse(call.arguments)]) }).toEqual({
        content,
        calls,
      })
    }
  })
})

const MARKS: Record<ToolFormat, readonly string[]> = {
  hermes: ['<tool_call>', '</tool_call>', WEATHER, '{"name": "a"', '}'],
  llama3: [WEATHER, '<|python_tag|>', ';', '{"name": "a", "parameters": {}}', '[', ']', '{'],
  mistral: ['[TOOL_CALLS]', `[${WEATHER}]`, 'get_time', '[ARGS]', '[CALL_ID]', 'x1', '{}', '{"a": 1}'],
  'qwen3-coder': ['<tool_call>', '</tool_call>', '<function=f>', '</function>', '<parameter=a>', '</parameter>', '1', 'x'],
  deepseek: [
    '<｜tool▁calls▁begin｜>',
    '<｜tool▁call▁begin｜>',
    '<｜tool▁call▁end｜>',
    '<｜tool▁calls▁end｜>',
    '<｜tool▁sep｜>',
    'function',
    'f',
    '\n```json\n',
    '```',
    '{}',
  ],
  functionary: ['>>>', 'all\n', 'f\n', '{}', '<function=f>', '</function>', '{"a": 1}'],
}

describe.each(Object.keys(MARKS) as ToolFormat[])('%s', (format) => {
  const parts = fc.array(
    fc.oneof({ weight: 3, arbitrary: fc.constantFrom(...MARKS[format]) }, fc.constantFrom(' ', '\n', 'text', '<', '[', '{"')),
    { maxLength: 10 },
  )

  test('what comes out is the same wherever the text is cut', () => {
    fc.assert(
      fc.property(parts, fc.array(fc.nat(200), { maxLength: 12 }), (parts, cuts) => {
        const text = parts.join('')
        const whole = run(format, [text])
        const places = [0, ...cuts.filter((cut) => cut < text.length).sort((a, b) => a - b), text.length]
        expect(
          run(
            format,
            places.slice(1).map((end, at) => text.slice(places[at], end)),
          ),
        ).toEqual(whole)
        expect(run(format, Array.from(text))).toEqual(whole)
      }),
      { numRuns: 500 },
    )
  })
  test('a text without calls comes out as it went in', () => {
    fc.assert(
      fc.property(parts, (parts) => {
        const text = parts.join('')
        const found = run(format, [text])
        expect(found.calls.length > 0 || format === 'functionary' || found.content === text).toBe(true)
        // In any case, what was not part of a call is in the content, in its order.
        let at = 0
        for (const char of found.content) at = text.indexOf(char, at) + 1
        expect(at > 0 || found.content === '').toBe(true)
      }),
      { numRuns: 500 },
    )
  })
})

test('text flows while no call is in sight', () => {
  const parser = openToolParser('hermes')
  expect(parser.push('Hello')).toEqual([{ kind: 'content', text: 'Hello' }])
  expect(parser.push(' there <')).toEqual([{ kind: 'content', text: ' there' }])
  expect(parser.push('b> ')).toEqual([{ kind: 'content', text: ' <b>' }])
  expect(parser.end()).toEqual([{ kind: 'content', text: ' ' }])
})

test('an answer in JSON is not held back for the sake of calls it does not contain', () => {
  const parser = openToolParser('llama3')
  expect(parser.push('{"answer": "')).toEqual([{ kind: 'content', text: '{"answer": "' }])
})

test('large numbers keep their digits', () => {
  expect(run('hermes', ['<tool_call>{"name": "f", "arguments": {"id": 12345678901234567890}}</tool_call>']).calls[0]?.arguments).toBe(
    '{"id": 12345678901234567890}',
  )
})

test('a call that never ends is given up, not kept for ever', () => {
  const parser = openToolParser('hermes')
  let content = ''
  const add = (text: string) => {
    for (const piece of parser.push(text)) if (piece.kind === 'content') content += piece.text
  }
  add('<tool_call>{"name": "f", "arguments": {"text": "')
  for (let piece = 0; piece < 300; piece += 1) add('x'.repeat(4096))
  expect(content.length).toBeGreaterThan(1 << 20)
})

test('a long call is read in steps that do not grow', () => {
  const parser = openToolParser('hermes')
  parser.push('<tool_call>{"name": "f", "arguments": {"text": "')
  const before = cpuMs()
  for (let piece = 0; piece < 100_000; piece += 1) parser.push('word ')
  const calls = [...parser.push('"}}</tool_call>'), ...parser.end()]
  expect(calls.map((piece) => piece.kind)).toEqual(['call', 'arguments'])
  expect(cpuMs() - before).toBeLessThan(5000)
})

describe('the format is found in the template', () => {
  test.each<[ToolFormat | undefined, string, string]>([
    [
      'hermes',
      'Qwen 2.5 and Hermes',
      '{{- "<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call>" }}',
    ],
    [
      'llama3',
      'Llama 3.1',
      '{{- "<|start_header_id|>" }}{%- if tools is not none %}{"name": function name, "parameters": dictionary}{%- endif %}{{- "<|python_tag|>" }}',
    ],
    [
      'llama3',
      'Llama 3.2',
      '{{- "<|start_header_id|>assistant<|end_header_id|>" }}{%- if tools %}Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}{%- endif %}',
    ],
    ['mistral', 'Mistral', '{{ "[TOOL_CALLS] [" }}{{ "[AVAILABLE_TOOLS]" }}'],
    [
      'qwen3-coder',
      'Qwen3-Coder',
      '<tool_call>\\n<function=example_function_name>\\n<parameter=example_parameter_1>\\nvalue_1\\n</parameter>',
    ],
    ['deepseek', 'DeepSeek', "{{'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>'}}"],
    ['functionary', 'Functionary v3.2', "{{ '>>>all\\n' + message['content'] }}{{ '>>>' + tool_call['function']['name'] }}"],
    ['functionary', 'Functionary v3.1', "{{ '<function=' + tool_call['function']['name'] + '>' }}{{ '</function>' }}<|start_header_id|>"],
    [undefined, 'one without tools', "{% for message in messages %}{{ '<|im_start|>' + message.role }}{% endfor %}"],
  ])('%s for %s', (format, _name, template) => {
    expect(toolFormat(template)).toBe(format)
  })
})
