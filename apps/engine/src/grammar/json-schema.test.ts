import { fileURLToPath } from 'node:url'
import { cpuMs } from '@parvis/testkit/cpu'
import { Ajv2020 } from 'ajv/dist/2020.js'
import fc from 'fast-check'
import { getLlama, type Llama, LlamaGrammar, LlamaGrammarEvaluationState, type LlamaModel } from 'node-llama-cpp'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { JSON_OBJECT_GBNF, jsonSchemaToGbnf } from './json-schema.ts'

let llama: Llama
let model: LlamaModel

beforeAll(async () => {
  llama = await getLlama({ gpu: false, build: 'never', skipDownload: true, maxThreads: 1 })
  model = await llama.loadModel({ modelPath: fileURLToPath(new URL('../../../../models/tiny-chat/tiny-chat-q8_0.gguf', import.meta.url)) })
})
afterAll(() => llama.dispose())

/** llama.cpp's own verdict: whether the grammar accepts exactly this text. */
const accepter = (gbnf: string) => {
  const grammar = new LlamaGrammar(llama, { grammar: gbnf }) as unknown as { _testText(text: string): boolean }
  return (text: string) => grammar._testText(text)
}

const made = (schema: unknown) => {
  const grammar = jsonSchemaToGbnf(schema)
  if (!grammar.ok) throw new Error(grammar.reason)
  return { check: (text: string) => grammar.check(text), accepts: accepter(grammar.gbnf), gbnf: grammar.gbnf }
}

type Row = {
  name: string
  schema: unknown
  yes: readonly unknown[]
  no?: readonly unknown[]
  yesText?: readonly string[]
  noText?: readonly string[]
}

const PERSON = {
  type: 'object',
  properties: { name: { type: 'string' }, age: { type: 'integer', minimum: 0, maximum: 150 }, email: { type: ['string', 'null'] } },
  required: ['name', 'age'],
  additionalProperties: false,
}
const TREE = {
  type: 'object',
  properties: { value: { type: 'integer' }, children: { type: 'array', items: { $ref: '#' } } },
  required: ['value', 'children'],
}

const TABLE: readonly Row[] = [
  { name: 'anything', schema: {}, yes: [1, 'a', null, [], {}, { a: [true] }], noText: ['', '{', 'undefined', "'a'"] },
  { name: 'true', schema: true, yes: [1, 'a', null] },
  {
    name: 'an object in the order of its schema, optional members left out',
    schema: PERSON,
    yes: [
      { name: 'A', age: 3 },
      { name: 'B', age: 150, email: null },
      { name: '', age: 0, email: 'x' },
    ],
    no: [
      { name: 'A' },
      { age: 3 },
      { name: 'A', age: 151 },
      { name: 'A', age: -1 },
      { name: 'A', age: 1, other: 1 },
      { name: 1, age: 1 },
      [],
    ],
    yesText: ['{"name": "A", "age": 3}', '{\n  "name": "A",\n  "age": 3\n}'],
    noText: [
      '{"name":"A","age":3}}',
      `{${' '.repeat(30)}"name":"A","age":3}`,
      '{"name":"A",,"age":3}',
      '{"name":"A","age":03}',
      '{"age":3,"name":"A"}',
    ],
  },
  {
    name: 'only optional members',
    schema: { type: 'object', properties: { a: { type: 'integer' }, b: { type: 'integer' }, c: { type: 'integer' } } },
    yes: [{}, { a: 1 }, { b: 1 }, { c: 1 }, { a: 1, c: 1 }, { a: 1, b: 2, c: 3 }],
    no: [{ a: 'x' }],
    noText: ['{"d":1}', '{,"a":1}', '{"a":1,}', '{"a":1"b":2}'],
  },
  { name: 'an object without anything', schema: { type: 'object', additionalProperties: false }, yes: [{}], no: [{ a: 1 }] },
  { name: 'an object with an empty list of properties', schema: { type: 'object', properties: {} }, yes: [{}], noText: ['{"a":1}'] },
  { name: 'a free object', schema: { type: 'object' }, yes: [{}, { a: { b: [] } }], no: [[], 1] },
  {
    name: 'other members of a type',
    schema: { type: 'object', properties: { id: { type: 'string' } }, required: ['id'], additionalProperties: { type: 'integer' } },
    yes: [{ id: 'x' }, { id: 'x', a: 1, idea: 2, i: 3 }],
    no: [{ id: 'x', a: 'y' }],
    noText: ['{"id":"x","id":1}', '{"id":"x","a":1,"id":2}'],
  },
  {
    name: 'other members of any type',
    schema: { type: 'object', properties: { a: { const: 1 } }, additionalProperties: true },
    yes: [{ a: 1, b: [2] }, { c: null }, {}],
    noText: ['{"a":1,"a":2}'],
  },
  {
    name: 'a required member without a schema',
    schema: { type: 'object', properties: { a: { type: 'integer' } }, required: ['z'] },
    yes: [{ a: 1, z: [] }, { z: 1 }],
    no: [{ a: 1 }],
  },
  {
    name: 'names by pattern',
    schema: { type: 'object', patternProperties: { '^x-': { type: 'string' }, '^n': { type: 'number' } }, additionalProperties: false },
    yes: [{}, { 'x-a': 'b' }, { n1: 2, 'x-': 'c' }],
    no: [{ 'x-a': 1 }, { n: 'a' }, { b: 1 }],
  },
  {
    name: 'names by pattern beside named ones and others',
    schema: {
      type: 'object',
      properties: { xa: { minLength: 2 } },
      patternProperties: { '^x': { type: 'string' } },
      additionalProperties: { type: 'boolean' },
    },
    yes: [{ xa: 'ab', xb: 'c', y: true }],
    no: [{ xa: 'a' }, { xb: 1 }, { y: 'a' }],
  },
  {
    name: 'names that must match',
    schema: { type: 'object', propertyNames: { pattern: '^[a-z]+$', maxLength: 3 }, additionalProperties: { type: 'null' } },
    yes: [{}, { abc: null }],
    no: [{ abcd: null }, { A: null }],
  },
  {
    name: 'a number of members',
    schema: { type: 'object', additionalProperties: { type: 'integer' }, minProperties: 1, maxProperties: 2 },
    yes: [{ a: 1 }, { a: 1, b: 2 }],
    no: [{}, { a: 1, b: 2, c: 3 }],
  },
  {
    name: 'a number of optional members',
    schema: { type: 'object', properties: { a: {}, b: {}, c: {} }, additionalProperties: false, minProperties: 2, maxProperties: 2 },
    yes: [
      { a: 1, b: 2 },
      { b: 1, c: 2 },
      { a: 1, c: 2 },
    ],
    no: [{ a: 1 }, { a: 1, b: 1, c: 1 }, {}],
  },
  { name: 'enum', schema: { enum: ['a', 'b"c', 1, null, { x: [1] }] }, yes: ['a', 'b"c', 1, null, { x: [1] }], no: ['c', 2, {}] },
  { name: 'enum beside a type', schema: { type: 'string', enum: ['a', 1, 'bb'], maxLength: 1 }, yes: ['a'], no: [1, 'bb'] },
  { name: 'const', schema: { const: 'ü€😀\n' }, yes: ['ü€😀\n'], no: ['u'] },
  { name: 'anyOf', schema: { anyOf: [{ type: 'integer' }, { type: 'string', maxLength: 2 }] }, yes: [1, 'ab'], no: ['abc', true] },
  {
    name: 'oneOf',
    schema: { oneOf: [{ type: 'null' }, { type: 'array', items: { type: 'boolean' } }] },
    yes: [null, [true]],
    no: [[1], 'a'],
  },
  {
    name: 'a choice beside members',
    schema: {
      type: 'object',
      properties: { kind: { type: 'string' } },
      required: ['kind'],
      anyOf: [
        { properties: { kind: { const: 'circle' }, radius: { type: 'number' } }, required: ['radius'] },
        { properties: { kind: { const: 'square' }, side: { type: 'number' } }, required: ['side'] },
      ],
    },
    yes: [
      { kind: 'circle', radius: 1.5 },
      { kind: 'square', side: 2 },
    ],
    no: [
      { kind: 'circle', side: 2 },
      { kind: 'oval', radius: 1 },
    ],
  },
  {
    name: 'allOf',
    schema: {
      allOf: [
        { type: 'object', properties: { a: { type: 'number', minimum: 1 } }, required: ['a'] },
        { properties: { a: { type: 'integer', maximum: 3 }, b: { type: 'string' } }, required: ['b'] },
      ],
    },
    yes: [
      { a: 1, b: '' },
      { a: 3, b: 'x' },
    ],
    no: [{ a: 0, b: '' }, { a: 4, b: '' }, { a: 1.5, b: '' }, { a: 1 }],
  },
  {
    name: 'a reference with words beside it',
    schema: {
      $defs: { name: { type: 'string', minLength: 1 } },
      type: 'object',
      properties: { a: { $ref: '#/$defs/name', maxLength: 2, description: 'x' } },
      required: ['a'],
    },
    yes: [{ a: 'x' }, { a: 'xy' }],
    no: [{ a: '' }, { a: 'xyz' }],
  },
  {
    name: 'definitions',
    schema: { definitions: { 'a/b': { type: 'boolean' } }, type: 'array', items: { $ref: '#/definitions/a~1b' } },
    yes: [[], [true, false]],
    no: [[1]],
  },
  {
    name: 'recursion',
    schema: TREE,
    yes: [
      { value: 1, children: [] },
      { value: 1, children: [{ value: 2, children: [{ value: 3, children: [] }] }] },
    ],
    no: [{ value: 1, children: [{}] }],
  },
  {
    name: 'recursion through a choice',
    schema: {
      $ref: '#/$defs/expr',
      $defs: {
        expr: {
          anyOf: [
            { type: 'integer' },
            {
              type: 'array',
              prefixItems: [{ enum: ['+', '*'] }, { $ref: '#/$defs/expr' }, { $ref: '#/$defs/expr' }],
              items: false,
              minItems: 3,
            },
          ],
        },
      },
    },
    yes: [1, ['+', 1, ['*', 2, 3]]],
    no: [
      ['+', 1],
      ['-', 1, 2],
      ['+', 1, 2, 3],
    ],
  },
  {
    name: 'items',
    schema: { type: 'array', items: { type: 'integer' }, minItems: 1, maxItems: 3 },
    yes: [[1], [1, 2, 3]],
    no: [[], [1, 2, 3, 4], ['a']],
    yesText: ['[ 1, 2 ]', '[\n  1,\n  2\n]'],
    noText: ['[1,]', '[,1]', '[1 2]'],
  },
  { name: 'no items', schema: { type: 'array', items: false }, yes: [[]], no: [[1]] },
  {
    name: 'exactly so many items',
    schema: { type: 'array', items: { const: 0 }, minItems: 2, maxItems: 2 },
    yes: [[0, 0]],
    no: [[0], [0, 0, 0]],
  },
  {
    name: 'prefixItems',
    schema: { type: 'array', prefixItems: [{ type: 'string' }, { type: 'integer' }], items: { type: 'null' }, minItems: 1 },
    yes: [['a'], ['a', 1], ['a', 1, null, null]],
    no: [[], [1], ['a', 1, 2]],
  },
  {
    name: 'items as a list, the old way',
    schema: { type: 'array', items: [{ type: 'string' }, { type: 'integer' }], additionalItems: false },
    yes: [[], ['a', 1]],
    no: [['a', 1, 2], [1]],
  },
  {
    name: 'a string with a length',
    schema: { type: 'string', minLength: 2, maxLength: 3 },
    yes: ['ab', 'abc', 'ü😀', '\n"'],
    no: ['a', 'abcd', 'aü😀b'],
    yesText: ['"\\u00e4b"'],
    noText: ['"\\ud83d\\ude00"'],
  },
  {
    name: 'a long string',
    schema: { type: 'string', minLength: 1500, maxLength: 4321 },
    yes: ['x'.repeat(1500), 'x'.repeat(1999), 'x'.repeat(2000), 'x'.repeat(3999), 'x'.repeat(4321)],
    no: ['x'.repeat(1499), 'x'.repeat(4322), 'x'.repeat(5000)],
  },
  {
    name: 'a pattern with anchors',
    schema: { type: 'string', pattern: '^[A-Z]{2}-\\d{3,4}$' },
    yes: ['AB-123', 'XY-1234'],
    no: ['A-123', 'AB-12', 'AB-12345', 'xAB-123'],
  },
  { name: 'a pattern without anchors', schema: { type: 'string', pattern: 'a"\\\\b' }, yes: ['a"\\b', 'xxa"\\byy'], no: ['ab', 'a"b'] },
  {
    name: 'a pattern with a length',
    schema: { type: 'string', pattern: '^(ab)+$', minLength: 3, maxLength: 6 },
    yes: ['abab', 'ababab'],
    no: ['ab', 'abababab'],
  },
  {
    name: 'two patterns',
    schema: { allOf: [{ type: 'string', pattern: 'a' }, { pattern: '^.{2}$' }] },
    yes: ['ab', 'ba', 'aa'],
    no: ['bb', 'a', 'aba'],
  },
  { name: 'a pattern of anything', schema: { type: 'string', pattern: '^[^]*$' }, yes: ['', 'a\u0001\u001f\n'] },
  {
    name: 'dates',
    schema: { type: 'string', format: 'date' },
    yes: ['2024-02-29', '2025-12-31', '2000-02-29'],
    no: ['2023-02-29', '1900-02-29', '2025-04-31', '2025-13-01', '2025-00-10', '25-01-01'],
  },
  {
    name: 'times',
    schema: { type: 'string', format: 'time' },
    yes: ['23:59:59Z', '00:00:00.123+02:00'],
    no: ['24:00:00Z', '12:00Z', '12:00:00'],
  },
  {
    name: 'instants',
    schema: { type: 'string', format: 'date-time' },
    yes: ['2025-06-30T12:00:00Z', '2025-06-30T12:00:00.5-05:30'],
    no: ['2025-06-31T12:00:00Z', '2025-06-30 12:00:00Z'],
  },
  {
    name: 'uuids',
    schema: { type: 'string', format: 'uuid' },
    yes: ['123e4567-e89b-12d3-a456-426614174000'],
    no: ['123e4567e89b12d3a456426614174000', 'x'],
  },
  {
    name: 'addresses',
    schema: {
      type: 'array',
      items: {
        anyOf: [
          { type: 'string', format: 'ipv4' },
          { type: 'string', format: 'email' },
        ],
      },
    },
    yes: [['127.0.0.1', 'a.b+c@example.org']],
    no: [['256.0.0.1'], ['a@b']],
  },
  {
    name: 'a format with a length',
    schema: { type: 'string', format: 'email', maxLength: 254 },
    yes: ['someone@mail.example.org', `${'a'.repeat(242)}@example.org`],
    no: [`${'a'.repeat(243)}@example.org`, 'someone@-example.org', 'someone'],
  },
  { name: 'a format that is a remark', schema: { type: 'string', format: 'password' }, yes: ['x'] },
  {
    name: 'integers',
    schema: { type: 'integer' },
    yes: [0, -1, 123, 9007199254740991],
    no: [1.5, '1'],
    noText: ['01', '1.0', '+1', '--1', '1e3'],
  },
  { name: 'numbers', schema: { type: 'number' }, yes: [0, -1.5, 1e-7, 123456.789], noText: ['.5', '5.', '01', '1e999', 'NaN'] },
  {
    name: 'integers in a range',
    schema: { type: 'integer', minimum: -12, maximum: 105 },
    yes: [-12, -11, -9, -1, 0, 9, 10, 99, 100, 105],
    no: [-13, -20, -100, 106, 110, 200, 1000],
  },
  {
    name: 'integers between bounds that are none',
    schema: { type: 'integer', exclusiveMinimum: 0.5, exclusiveMaximum: 3 },
    yes: [1, 2],
    no: [0, 3],
  },
  { name: 'integers from a number on', schema: { type: 'integer', minimum: 18 }, yes: [18, 19, 99, 100, 123456], no: [17, 9, 1, 0, -18] },
  { name: 'integers up to a number', schema: { type: 'integer', maximum: -5 }, yes: [-5, -6, -10, -99], no: [-4, 0, 5] },
  {
    name: 'numbers in a range',
    schema: { type: 'number', minimum: 0, maximum: 1 },
    yes: [0, 0.5, 1, 0.000001234],
    no: [-0.1, 1.1, 2, 10],
    yesText: ['1.0', '0.0'],
    noText: ['1.01', '-0', '1e0'],
  },
  {
    name: 'numbers in an open range',
    schema: { type: 'number', exclusiveMinimum: -0.25, exclusiveMaximum: 12.5 },
    yes: [-0.24, 0, 12.49, 9.99],
    no: [-0.25, 12.5, 13, -1],
    noText: ['12.50', '-0.250'],
  },
  {
    name: 'steps of integers',
    schema: { type: 'integer', multipleOf: 5, minimum: 10, maximum: 30 },
    yes: [10, 15, 20, 25, 30],
    no: [5, 11, 35],
  },
  {
    name: 'steps of decimals',
    schema: { type: 'number', multipleOf: 0.01, minimum: 0 },
    yes: [0, 1, 1.5, 0.07, 123.45],
    no: [0.001, -1, 0.005],
  },
  { name: 'several types', schema: { type: ['integer', 'null', 'boolean'] }, yes: [1, null, true], no: ['a', []] },
  { name: 'a type by its keywords', schema: { properties: { a: { minLength: 1 } }, required: ['a'] }, yes: [{ a: 'x' }], no: [{ a: '' }] },
  { name: 'nullable', schema: { type: 'string', nullable: true }, yes: ['a', null], no: [1] },
  {
    name: 'an optional member that nothing fits',
    schema: { type: 'object', properties: { a: false, b: { type: 'integer' } } },
    yes: [{}, { b: 1 }],
    no: [{ a: 1 }],
  },
]

describe.each(TABLE)('$name', ({ schema, yes, no = [], yesText = [], noText = [] }) => {
  test('is kept by llama.cpp with our grammar, and by the check', () => {
    const { accepts, check } = made(schema)
    for (const value of yes) {
      expect([value, accepts(JSON.stringify(value)), check(JSON.stringify(value))]).toEqual([value, true, undefined])
    }
    for (const text of yesText) expect([text, accepts(text), check(text)]).toEqual([text, true, undefined])
    for (const text of noText) expect([text, accepts(text)]).toEqual([text, false])
    for (const value of no) {
      const text = JSON.stringify(value)
      expect([value, accepts(text), check(text)]).toEqual([value, false, expect.any(String)])
    }
  })
})

test('what a real model writes under any of these grammars is valid, whatever it would rather write', async () => {
  const context = await model.createContext({ contextSize: 512, sequences: 1, threads: 1 })
  const sequence = context.getSequence()
  const prompt = model.tokenize('<|im_start|>user\nGive me JSON.<|im_end|>\n<|im_start|>assistant\n', true)
  let ended = 0
  for (const [index, { name, schema }] of TABLE.entries()) {
    const { gbnf, check } = made(schema)
    const grammar = new LlamaGrammar(llama, { grammar: gbnf })
    for (const temperature of [0.7, 1.5]) {
      await sequence.clearHistory()
      const grammarEvaluationState = new LlamaGrammarEvaluationState({ model, grammar })
      const tokens = []
      const options = { temperature, topK: 0, topP: 1, minP: 0, seed: index + 1, grammarEvaluationState }
      let whole = true
      for await (const token of sequence.evaluate(prompt, options)) {
        tokens.push(token)
        if (tokens.length >= 160) {
          whole = false
          break
        }
      }
      if (!whole) continue
      ended += 1
      const text = model.detokenize(tokens)
      expect([name, text, check(text)]).toEqual([name, text, undefined])
    }
  }
  expect(ended).toBeGreaterThan(TABLE.length)
  await context.dispose()
})

describe('refused, with the keyword and its place', () => {
  test.each([
    [false, '#: nothing fits a schema that is false'],
    ['x', '#: a schema must be an object or a boolean'],
    [{ type: 'object', properties: { a: { not: {} } } }, '#/properties/a/not: '],
    [{ if: {}, else: {} }, '#/if: '],
    [{ type: 'array', uniqueItems: true }, '#/uniqueItems: '],
    [{ type: 'array', contains: { type: 'string' } }, '#/contains: '],
    [{ type: 'object', dependentRequired: { a: ['b'] } }, '#/dependentRequired: '],
    [{ $ref: 'https://example.org/schema' }, '#/$ref: only references inside the schema'],
    [{ $ref: '#/$defs/none' }, '#/$ref: there is no "#/$defs/none"'],
    [{ $ref: '#' }, '#: the schema refers to itself'],
    [{ type: 'object', properties: { next: { $ref: '#' } }, required: ['next'] }, '#: a value that follows the schema would never end'],
    [{ type: 'array', items: { $ref: '#' }, minItems: 1 }, '#: a value that follows the schema would never end'],
    [{ $defs: { a: { anyOf: [{ $ref: '#/$defs/a' }, { type: 'string' }] } }, $ref: '#/$defs/a' }, '#/$defs/a: the schema refers to itself'],
    [{ type: 'string', pattern: '(?=a)b' }, '#/pattern: look-ahead and look-behind'],
    [{ type: 'string', pattern: '(?<!a)b' }, '#/pattern: look-ahead and look-behind'],
    [{ type: 'string', pattern: '(a)\\1' }, '#/pattern: back-references'],
    [{ type: 'string', pattern: '\\bword\\b' }, '#/pattern: word boundaries'],
    [{ type: 'string', pattern: '\\p{L}' }, '#/pattern: Unicode properties'],
    [{ type: 'string', pattern: '(' }, '#/pattern: a group is not closed'],
    [{ type: 'string', pattern: 'a^b' }, '#/pattern: no text can match it'],
    [{ type: 'string', minLength: 1_000_001 }, '#/minLength: cannot be kept by a grammar: it can be at most 1000000'],
    [{ properties: { a: { type: 'string', minLength: 1e300 } } }, '#/properties/a/minLength: cannot be kept'],
    [{ type: 'string', pattern: '^a+$', minLength: 1_000_001 }, '#/minLength: cannot be kept'],
    [{ type: 'string', pattern: '^a{1000000}$' }, '#/pattern: a repetition of more than 5000'],
    [{ type: 'array', minItems: 1_000_001 }, '#/minItems: cannot be kept'],
    [{ type: 'array', prefixItems: [{}], items: {}, minItems: 2e9 }, '#/minItems: cannot be kept'],
    [{ type: 'object', minProperties: 1_000_001 }, '#/minProperties: cannot be kept'],
    [{ type: 'object', properties: { a: {} }, additionalProperties: true, minProperties: 2e9 }, '#/minProperties: cannot be kept'],
    [{ type: 'string', pattern: '^a$', minLength: 2 }, '#: no string has the pattern'],
    [{ type: 'number', multipleOf: 0.123456789 }, '#/multipleOf: '],
    [{ type: 'integer', minimum: 5, maximum: 4 }, '#: no number is in the range'],
    [{ type: 'integer', minimum: '5' }, '#/minimum: must be a number'],
    [{ type: 'colour' }, '#/type: "colour" is not a type'],
    [{ type: 'string', enum: [1] }, '#: no value of enum or const fits'],
    [{ allOf: [{ type: 'string' }, { type: 'integer' }] }, '#: no type fits'],
    [
      {
        allOf: [
          { type: 'object', properties: { a: {} }, additionalProperties: false },
          { properties: { b: {} }, required: ['b'] },
        ],
      },
      'nothing can be the required property "b"',
    ],
    [{ type: 'object', properties: { a: false }, required: ['a'] }, 'nothing can be the required property "a"'],
    [{ type: 'array', items: false, minItems: 1 }, '#: no list of items fits'],
    [{ patternProperties: { a: {}, b: {} } }, '#/patternProperties/b: overlaps'],
    [{ type: 'string', description: 'x'.repeat(70_000) }, '#: the schema is larger than 65536 bytes'],
    [Array.from({ length: 100 }).reduce((inner: unknown) => ({ type: 'array', items: inner }), {}), 'nested deeper than 64 levels'],
    [
      {
        allOf: Array.from({ length: 10 }, (_, at) => ({ anyOf: [{ properties: { [`a${at}`]: {} } }, { properties: { [`b${at}`]: {} } }] })),
      },
      'combinations of anyOf',
    ],
    [{ type: 'string', pattern: '(a{5000}){5000}' }, 'too large'],
  ] as [unknown, string][])('%#', (schema, reason) => {
    const grammar = jsonSchemaToGbnf(schema)
    expect(grammar.ok ? 'accepted' : grammar.reason).toContain(reason)
  })
})

test('a schema too deep to be walked is refused, not a crash', () => {
  const grammar = jsonSchemaToGbnf(JSON.parse(`${'{"a":'.repeat(5000)}1${'}'.repeat(5000)}`))
  expect(grammar.ok ? 'accepted' : grammar.reason).toContain('nested deeper than 64 levels')
})

test('a value that fits two branches of oneOf is found by the check', () => {
  const { check } = made({ oneOf: [{ type: 'integer' }, { type: 'number', minimum: 0 }] })
  expect(check('-1')).toBeUndefined()
  expect(check('1')).toContain('exactly one')
  expect(check('{')).toBe('the text is not JSON')
})

test('hostile patterns are refused quickly', () => {
  const hostile = [
    '^(a?){5000}$',
    '^(a|b)*a(a|b){30}$',
    '(.*a){400}',
    '((a{0,70}){0,70}){0,70}',
    `[^${Array.from({ length: 8000 }, (_, at) => String.fromCodePoint(0x4e00 + 2 * at)).join('')}]{2000}`,
  ]
  for (const pattern of hostile) {
    const before = cpuMs()
    const grammar = jsonSchemaToGbnf({
      type: 'object',
      properties: { a: { type: 'string', pattern }, b: { type: 'string', pattern: `${pattern}b` } },
    })
    expect([pattern.slice(0, 30), grammar.ok ? 'accepted' : grammar.reason]).toEqual([
      pattern.slice(0, 30),
      expect.stringContaining('too large'),
    ])
    expect(cpuMs() - before).toBeLessThan(5000)
  }
})

test('a pattern that is slow in other engines is checked in one pass', () => {
  const { check } = made({ type: 'string', pattern: '^(a+)+$' })
  expect(check(JSON.stringify(`${'a'.repeat(50_000)}b`))).toContain('must match pattern')
})

test('a schema with hundreds of optional properties stays within bounds', () => {
  const properties = Object.fromEntries(Array.from({ length: 800 }, (_, at) => [`property${at}`, { type: 'integer' }]))
  const { accepts } = made({ type: 'object', properties, additionalProperties: false })
  expect(accepts('{"property3": 1, "property700": 2}')).toBe(true)
  expect(accepts('{"property700": 1, "property3": 2}')).toBe(false)
})

test('the JSON mode accepts every object and nothing else', () => {
  const accepts = accepter(JSON_OBJECT_GBNF)
  fc.assert(
    fc.property(fc.dictionary(wellFormed, fc.jsonValue({ noUnicodeString: false })), (value) => {
      fc.pre(isPlain(value))
      expect(accepts(JSON.stringify(value))).toBe(true)
      expect(accepts(JSON.stringify(value, null, 2))).toBe(true)
    }),
    { numRuns: 100 },
  )
  for (const text of ['[]', '1', '{}x', ' {}', '{"a"}', '{a:1}', '']) expect([text, accepts(text)]).toEqual([text, false])
})

const wellFormed = fc.string({ unit: 'grapheme', maxLength: 6 })

/** What our grammars do not write: numbers with very large exponents, and halves of surrogate pairs. */
const isPlain = (value: unknown): boolean => !/e[+-]?\d{3}|\\ud[89a-f]|\d{17}/i.test(JSON.stringify(value))

/** Schemas that describe a value: exact or looser in each part. */
const describing = (value: unknown): fc.Arbitrary<unknown> => {
  if (value === null) return fc.constantFrom({ type: 'null' }, { type: ['null', 'string'] }, {})
  if (typeof value === 'boolean')
    return fc.constantFrom({ type: 'boolean' }, { const: value }, { anyOf: [{ type: 'null' }, { type: 'boolean' }] })
  if (typeof value === 'number') {
    const type = Number.isInteger(value) ? 'integer' : 'number'
    return fc.constantFrom(
      { type },
      { enum: [value, 'x'] },
      { type: 'number', minimum: value, maximum: value + 1 },
      { type: 'number', maximum: value },
      { type: 'number', exclusiveMinimum: value - 1 },
    )
  }
  if (typeof value === 'string') {
    const length = Array.from(value).length
    const spelled = Array.from(value, (char) => `\\u{${char.codePointAt(0)?.toString(16)}}`).join('')
    return fc.constantFrom(
      { type: 'string' },
      { type: 'string', minLength: length, maxLength: length + 1 },
      { pattern: `^${spelled}$` },
      { pattern: spelled },
      { enum: [value] },
    )
  }
  if (Array.isArray(value)) {
    return fc
      .tuple(...value.map(describing))
      .map((prefixItems) => ({ type: 'array', ...(prefixItems.length > 0 && { prefixItems }), minItems: value.length }))
  }
  const entries = Object.entries(value as object)
  return fc
    .tuple(
      fc.tuple(...entries.map(([, one]) => describing(one))),
      fc.array(fc.boolean(), { minLength: entries.length, maxLength: entries.length }),
    )
    .map(([schemas, needed]) => ({
      type: 'object',
      properties: Object.fromEntries(entries.map(([name], at) => [name, schemas[at]])),
      required: entries.filter((_, at) => needed[at]).map(([name]) => name),
      additionalProperties: false,
    }))
}

test('a value is accepted by every schema made from it', () => {
  fc.assert(
    fc.property(
      fc
        .jsonValue({ maxDepth: 3 })
        .filter(isPlain)
        .chain((value) => fc.tuple(fc.constant(value), describing(value))),
      ([value, schema]) => {
        fc.pre(fitsDigits(value))
        const { accepts, check } = made(schema)
        const text = JSON.stringify(value)
        expect([text, check(text)]).toEqual([text, undefined])
        expect([text, schema, accepts(text)]).toEqual([text, schema, true])
      },
    ),
    { numRuns: 200 },
  )
})

/** Numbers in a range are written without exponent and with 15 digits at most. */
const fitsDigits = (value: unknown): boolean => !/\d[eE]|[\d.]{16}|"__proto__"|-0[,\]}]|-0$/.test(JSON.stringify(value))

test('what the grammar accepts of a random text, the schema accepts', () => {
  // Random small schemas and values: whatever passes the grammar must pass an independent validator.
  const leaf = fc.constantFrom<unknown>(
    { type: 'integer', minimum: 0 },
    { type: 'string', maxLength: 1 },
    { type: 'null' },
    { enum: [1, 'a'] },
    {},
    { type: 'boolean' },
  )
  const { schema } = fc.letrec<{ schema: unknown }>((tie) => ({
    schema: fc.oneof(
      { maxDepth: 2 },
      leaf,
      fc.record({ type: fc.constant('array'), items: tie('schema'), maxItems: fc.nat(2) }, { requiredKeys: ['type'] }),
      fc.record(
        {
          type: fc.constant('object'),
          properties: fc.dictionary(fc.constantFrom('a', 'b'), tie('schema')),
          required: fc.uniqueArray(fc.constantFrom('a', 'b')),
          additionalProperties: fc.oneof(fc.boolean(), tie('schema')),
        },
        { requiredKeys: ['type'] },
      ),
      fc.record({ anyOf: fc.array(tie('schema'), { minLength: 1, maxLength: 2 }) }),
      fc.record({ allOf: fc.array(tie('schema'), { minLength: 1, maxLength: 2 }) }),
    ),
  }))
  const { value } = fc.letrec<{ value: unknown }>((tie) => ({
    value: fc.oneof(
      { maxDepth: 2 },
      fc.constantFrom<unknown>(0, -1, 1, 'a', 'ab', '', null, true),
      fc.array(tie('value'), { maxLength: 2 }),
      fc.dictionary(fc.constantFrom('a', 'b', 'c'), tie('value')),
    ),
  }))
  let accepted = 0
  fc.assert(
    fc.property(schema, fc.array(value, { minLength: 20, maxLength: 20 }), (schema, values) => {
      const grammar = jsonSchemaToGbnf(schema)
      const valid = new Ajv2020({ strict: false, logger: false }).compile(schema as object)
      if (!grammar.ok) return
      const accepts = accepter(grammar.gbnf)
      for (const value of values) {
        if (!accepts(JSON.stringify(value))) continue
        accepted += 1
        expect([schema, value, valid(value)]).toEqual([schema, value, true])
      }
    }),
    { numRuns: 150 },
  )
  expect(accepted).toBeGreaterThan(100)
})

test('whatever count is not refused, llama.cpp can read', () => {
  const COUNTS = [1, 2, 999, 1000, 1001, 1999, 2000, 2001, 999_999, 1_000_000]
  const of = (what: 'Length' | 'Items' | 'Properties', least: number, most?: number) => ({
    [`min${what}`]: least,
    ...(most === undefined ? {} : { [`max${what}`]: most }),
  })
  for (const what of ['Length', 'Items', 'Properties'] as const) {
    for (const count of COUNTS) {
      for (const schema of [
        of(what, count),
        of(what, 0, count),
        of(what, count, count),
        of(what, count, 1_000_000),
        of(what, count, 1e300),
      ]) {
        const made = jsonSchemaToGbnf(schema)
        if (!made.ok) throw new Error(`${JSON.stringify(schema)}: ${made.reason}`)
        expect(() => new LlamaGrammar(llama, { grammar: made.gbnf })).not.toThrow()
      }
    }
  }
})
