import { aModel } from '@parvis/testkit/data-plane'
import { dataUrl, mp3, png, wav } from '@parvis/testkit/media'
import { describe, expect, test } from 'vitest'
import { NO_RULES } from '../../catalog/model.ts'
import { bufferToBody, piecesToBody, slice } from '../body.ts'
import { chat } from './chat.ts'

const ASK = { model: 'tiny-chat', messages: [{ role: 'user', content: 'Hi' }] }
const FEATURES = { tools: true, structuredOutput: true, reasoning: false, vision: true }
const MODEL = aModel({ features: FEATURES, rules: { ...NO_RULES, audioInChat: true } })

const check = (ask: object, model = MODEL) => {
  const text = Buffer.from(JSON.stringify(ask))
  const reading = chat.read(bufferToBody(text))
  if (!reading.ok) throw new Error('unreadable')
  return chat.check(reading.value, model)
}

const fieldOf = (ask: object): string => {
  const checked = check({ ...ASK, ...ask })
  return checked.ok ? 'accepted' : checked.refusal.code === 'field_invalid' ? checked.refusal.field : checked.refusal.code
}

const user = (content: unknown) => ({ messages: [{ role: 'user', content }] })

/** Longer than what is read of a body. */
const LONG = 'all that was said é"\\ '.repeat(200)

describe('long words in a chat', () => {
  test('are not read, and go to the engine as they came', () => {
    const ask = {
      ...ASK,
      ...user([
        { type: 'text', text: LONG },
        { type: 'image_url', image_url: { url: dataUrl('image/png', png(64, 64, 3_000)) } },
      ]),
    }
    const text = Buffer.from(JSON.stringify({ ...ask, metadata: { note: LONG } }))
    const reading = chat.read(bufferToBody(text))
    if (!reading.ok) throw new Error('unreadable')
    expect(JSON.stringify(reading.value.value?.['messages'])).not.toContain('said')
    // What stands elsewhere may be written anew, so it is whole.
    expect(reading.value.value?.['metadata']).toEqual({ note: LONG })
    const checked = chat.check(reading.value, MODEL)
    if (!checked.ok) throw new Error(JSON.stringify(checked.refusal))
    const { pieces } = checked.value.bytesFor('remote')
    expect(JSON.parse(Buffer.concat(pieces).toString())).toMatchObject({ ...ask, model: 'remote' })
  })

  test('hide no mistake around them', () => {
    const before = { role: 'user', content: LONG }
    const after = { role: 'tool', content: LONG, tool_call_id: LONG }
    expect(fieldOf({ messages: [before, { role: 'nobody', content: LONG }, after] })).toBe('messages[1].role')
    expect(fieldOf({ messages: [before, { role: 'tool', content: LONG }] })).toBe('messages[1].tool_call_id')
    expect(fieldOf({ messages: [before, { role: 'user', content: { text: LONG } }] })).toBe('messages[1].content')
    expect(fieldOf({ messages: [before, after], temperature: 7 })).toBe('temperature')
    expect(fieldOf({ messages: LONG })).toBe('messages')
    expect(fieldOf({ messages: [before, after] })).toBe('accepted')
    // A key that is as long is one that nobody knows.
    expect(fieldOf({ messages: [{ ...before, [LONG]: 1, [`${LONG}!`]: 2 }] })).toBe('accepted')
  })

  test('must be UTF-8, and what is no JSON around them is refused as ever', () => {
    const whole = Buffer.from(JSON.stringify({ ...ASK, ...user(LONG) }))
    const broken = Buffer.from(whole)
    broken[whole.length - 100] = 0xff
    expect(chat.read(bufferToBody(broken))).toMatchObject({ ok: false, refusal: { code: 'body_not_json' } })
    const behind = Buffer.from(`${whole.toString().slice(0, -3)},}]}`)
    let reason = ''
    try {
      JSON.parse(behind.toString())
    } catch (error) {
      reason = (error as Error).message
    }
    // The place in it is that in the body, not in what is left of it.
    expect(reason).toMatch(/position 4\d{3}/)
    expect(chat.read(bufferToBody(behind))).toEqual({ ok: false, refusal: { code: 'body_not_json', reason } })
  })
})

describe('a chat request', () => {
  test.each<[object]>([
    [
      {
        messages: [
          { role: 'system', content: 'a' },
          { role: 'developer', content: [{ type: 'text', text: 'a' }] },
          { role: 'user', content: 'b' },
        ],
      },
    ],
    [
      {
        messages: [
          { role: 'assistant', content: null, tool_calls: [{ id: '1', type: 'function', function: { name: 'a', arguments: '{}' } }] },
        ],
      },
    ],
    [{ messages: [{ role: 'assistant', content: 'a', reasoning_content: 'b', tool_calls: null, refusal: null }] }],
    [{ messages: [{ role: 'assistant' }, { role: 'tool', content: '1', tool_call_id: '1', name: 'a' }] }],
    [
      user([
        { type: 'text', text: 'a' },
        { type: 'image_url', image_url: { url: 'https://example.com/a.png', detail: 'low' } },
      ]),
    ],
    [user([{ type: 'input_audio', input_audio: { data: wav(1).toString('base64'), format: 'wav' } }])],
    [user([{ type: 'image_url', image_url: { url: dataUrl('image/gif', png()) } }])],
    [{ temperature: 0, top_p: 1, presence_penalty: -2, frequency_penalty: 2, seed: 2 ** 60, n: 2, stop: ['a', 'b', 'c', 'd'] }],
    [
      {
        temperature: null,
        top_p: null,
        stop: null,
        stream: null,
        stream_options: null,
        tools: null,
        max_tokens: null,
        response_format: null,
        n: null,
      },
    ],
    [{ logprobs: true, top_logprobs: 20, logit_bias: { '1': -100 }, parallel_tool_calls: false, reasoning_effort: 'low' }],
    [{ tools: [{ type: 'function', function: { name: 'a', strict: true } }], tool_choice: { type: 'function', function: { name: 'a' } } }],
    [{ response_format: { type: 'json_object', schema: {} } }],
    [{ response_format: { type: 'json_schema', json_schema: { name: 'a', schema: { type: 'object' }, strict: true } } }],
    [
      {
        format: 'json',
        user: 7,
        metadata: 'x',
        store: 'y',
        top_k: -1,
        chat_template_kwargs: { a: 1 },
        modalities: 3,
        web_search_options: [],
      },
    ],
  ])('is accepted: %j', (ask) => {
    expect(fieldOf(ask)).toBe('accepted')
  })

  test.each<[object, string]>([
    [{ messages: [] }, 'messages'],
    [{ messages: 'Hi' }, 'messages'],
    [{ messages: null }, 'messages'],
    [{ messages: ['Hi'] }, 'messages[0]'],
    [{ messages: [{ content: 'Hi' }] }, 'messages[0].role'],
    [{ messages: [{ role: 'robot', content: 'Hi' }] }, 'messages[0].role'],
    [{ messages: [{ role: 'user' }] }, 'messages[0].content'],
    [{ messages: [{ role: 'system', content: null }] }, 'messages[0].content'],
    [{ messages: [{ role: 'tool', content: '1' }] }, 'messages[0].tool_call_id'],
    [{ messages: [{ role: 'assistant', content: 7 }] }, 'messages[0].content'],
    [user([]), 'messages[0].content'],
    [user([{ type: 'file', file: {} }]), 'messages[0].content[0].type'],
    [
      user([
        { type: 'text', text: 'a' },
        { type: 'image_url', image_url: 'https://x' },
      ]),
      'messages[0].content[1].image_url',
    ],
    [user([{ type: 'input_audio', input_audio: { data: 'AAAA', format: 'flac' } }]), 'messages[0].content[0].input_audio.format'],
    [user([{ type: 'input_audio', input_audio: { data: 'AAAA', format: 'wav' } }]), 'messages[0].content[0].input_audio'],
    [
      user([{ type: 'input_audio', input_audio: { data: wav(1).toString('base64'), format: 'mp3' } }]),
      'messages[0].content[0].input_audio',
    ],
    [user([{ type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA' } }]), 'messages[0].content[0].image_url'],
    [user([{ type: 'image_url', image_url: { url: 'data:image/png,AAAA' } }]), 'messages[0].content[0].image_url'],
    [user([{ type: 'image_url', image_url: { url: 'file:///etc/passwd' } }]), 'messages[0].content[0].image_url'],
    [user([{ type: 'image_url', image_url: { url: dataUrl('image/png', png(8001, 4000)) } }]), 'messages[0].content[0].image_url'],
    [{ reasoning_effort: 'hugely' }, 'reasoning_effort'],
    [{ temperature: 2.1 }, 'temperature'],
    [{ temperature: '1' }, 'temperature'],
    [{ top_p: -0.1 }, 'top_p'],
    [{ presence_penalty: 3 }, 'presence_penalty'],
    [{ frequency_penalty: -2.5 }, 'frequency_penalty'],
    [{ max_tokens: 0 }, 'max_tokens'],
    [{ max_tokens: '8000' }, 'max_tokens'],
    [{ max_completion_tokens: 1.5 }, 'max_completion_tokens'],
    [{ stop: ['a', 'b', 'c', 'd', 'e'] }, 'stop'],
    [{ stop: 7 }, 'stop'],
    [{ n: 0 }, 'n'],
    [{ seed: 1.5 }, 'seed'],
    [{ stream: 'true' }, 'stream'],
    [{ stream_options: { include_usage: 1 } }, 'stream_options.include_usage'],
    [{ logprobs: 1 }, 'logprobs'],
    [{ top_logprobs: 21 }, 'top_logprobs'],
    [{ tools: {} }, 'tools'],
    [{ tools: [{ type: 'web_search' }] }, 'tools[0].type'],
    [{ tools: [{ type: 'function', function: {} }] }, 'tools[0].function.name'],
    [{ tool_choice: 'sometimes' }, 'tool_choice'],
    [{ response_format: { type: 'xml' } }, 'response_format.type'],
    [{ response_format: { type: 'json_schema' } }, 'response_format.json_schema'],
    [{ max_tokens: 513 }, 'output_limit'],
    [{ max_completion_tokens: 513, max_tokens: 1 }, 'output_limit'],
  ])('is refused and the field is named: %j', (ask, field) => {
    expect(fieldOf(ask)).toBe(field)
  })

  test('that asks for more output than there is context cannot be met', () => {
    const checked = check({ ...ASK, max_tokens: 100 }, aModel({ contextTokens: 100, maxOutputTokens: 200 }))
    expect(checked).toEqual({ ok: false, refusal: { code: 'context_exceeded', asked: 101, maximum: 100 } })
  })

  test('to a model whose output is said to be longer than its context reserves what fits, and is sent without a limit', () => {
    const checked = check(ASK, aModel({ contextTokens: 22_000, maxOutputTokens: 32_768 }))
    if (!checked.ok) throw new Error('refused')
    const { outputTokens } = checked.value.estimate
    expect([outputTokens > 20_000, outputTokens < 22_000]).toEqual([true, true])
    const sent = checked.value.bytesFor('remote')
    expect(Object.keys(JSON.parse(slice(sent, { start: 0, end: sent.bytes }).toString()) as object)).toEqual(['model', 'messages'])
  })

  test('is estimated by its text, and an image in it as an image, however it is cut', () => {
    const estimate = (body: Buffer, pieces = 1): number => {
      const size = Math.ceil(body.length / pieces)
      const cut = Array.from({ length: pieces }, (_, index) => body.subarray(index * size, (index + 1) * size))
      const reading = chat.read(piecesToBody(cut, body.length))
      const checked = reading.ok && chat.check(reading.value, { ...MODEL, contextTokens: 1_000_000 })
      return checked && checked.ok ? checked.value.estimate.inputTokens : Number.NaN
    }
    expect(estimate(Buffer.from(JSON.stringify({ ...ASK, ...user('x'.repeat(4000)) })))).toBeGreaterThan(1000)
    const image = { type: 'image_url', image_url: { url: dataUrl('image/png', png(10, 10, 300_000)) } }
    const body = Buffer.from(JSON.stringify({ ...ASK, ...user([image, image]) }))
    for (const pieces of [1, 13]) {
      expect(estimate(body, pieces)).toBeGreaterThan(3000)
      expect(estimate(body, pieces)).toBeLessThan(3200)
    }
    // What an engine may take for a part of the prompt is guessed as one.
    expect(estimate(Buffer.from(JSON.stringify({ ...ASK, documents: [{ text: 'word '.repeat(4000) }] })))).toBeGreaterThan(3000)
    expect(check({ ...ASK, n: 3, max_tokens: 10 })).toMatchObject({ value: { estimate: { outputTokens: 30 } } })
  })
})

describe('what a model cannot do is refused before an engine is asked', () => {
  const refused = (ask: object, model: Parameters<typeof aModel>[0]): string => {
    const checked = check({ ...ASK, ...ask }, aModel(model))
    if (checked.ok) return 'accepted'
    return checked.refusal.code === 'field_invalid' ? `${checked.refusal.field}: ${checked.refusal.reason}` : checked.refusal.code
  }
  const tools = [{ type: 'function', function: { name: 'a' } }]
  const without = { tools: false, structuredOutput: false, reasoning: false, vision: false }
  const large = { padding: 'x'.repeat(70_000) }

  test.each([{}, large])('tools, formats, images and sound, in a small body and in a large one', (more) => {
    const image = user([{ type: 'image_url', image_url: { url: 'https://example.com/a.png' } }])
    const sound = user([{ type: 'input_audio', input_audio: { data: mp3(1).toString('base64'), format: 'mp3' } }])
    const ask = (asked: object) => refused({ ...asked, ...more }, { features: without })
    expect(ask({ tools })).toBe('tools: the model tiny-chat takes no tools')
    expect(ask({ tools: [] })).toBe('accepted')
    expect(ask({ tools: null })).toBe('accepted')
    expect(ask({ response_format: { type: 'json_object' } })).toBe('response_format: the model tiny-chat has no structured output')
    expect(ask({ response_format: { type: 'text' } })).toBe('accepted')
    expect(ask(image)).toBe('messages[0].content[0]: the model tiny-chat takes no images')
    expect(ask(sound)).toBe('messages[0].content[0]: the model tiny-chat takes no audio')
  })

  test('more images than it takes', () => {
    const images = (count: number) =>
      user(Array.from({ length: count }, () => ({ type: 'image_url', image_url: { url: dataUrl('', png()) } })))
    const model = { features: FEATURES, rules: { ...NO_RULES, maxImages: 12 } }
    expect(refused(images(12), model)).toBe('accepted')
    expect(refused(images(13), model)).toBe('messages: 13 images are too many: the model tiny-chat takes 12 in a request')
  })

  const turns = (roles: string) =>
    roles.split(' ').map((role) => ({
      role: role.replace('calls', 'assistant'),
      content: 'x',
      ...(role === 'tool' ? { tool_call_id: '1' } : {}),
      ...(role === 'calls' ? { tool_calls: [{ id: '1', type: 'function', function: { name: 'a', arguments: '{}' } }] } : {}),
    }))

  test.each([
    ['user', true],
    ['system user assistant user', true],
    ['developer user', true],
    ['user calls tool tool assistant user', true],
    ['user calls tool calls tool', true],
    ['user user', false],
    ['system user assistant assistant', false],
    ['assistant user', false],
    ['user calls tool user', false],
  ])('roles out of order: %s', (roles, good) => {
    const model = { rules: { ...NO_RULES, alternatingRoles: true } }
    for (const more of [{}, large]) {
      expect(refused({ messages: turns(roles), ...more }, model)).toBe(good ? 'accepted' : 'roles_refused')
      expect(refused({ messages: turns(roles), ...more }, {})).toBe('accepted')
    }
  })
})

describe('what the engine gets', () => {
  const sent = (ask: object, model: Parameters<typeof aModel>[0] = {}): Record<string, unknown> => {
    const checked = check({ ...ASK, ...ask }, aModel(model))
    if (!checked.ok) throw new Error(checked.refusal.code)
    const body = checked.value.bytesFor('tiny-chat')
    return JSON.parse(slice(body, { start: 0, end: body.bytes }).toString()) as Record<string, unknown>
  }
  const tools = [{ type: 'function', function: { name: 'a' } }]
  const large = { padding: 'x'.repeat(70_000) }
  const system = (content: string, role = 'system') => ({ role, content })

  test.each([{}, large])("a system message where tools come without one, and the client's own otherwise", (more) => {
    const model = { rules: { ...NO_RULES, toolSystemPrompt: 'You can "call".' } }
    expect(sent({ tools, ...more }, model)['messages']).toEqual([system('You can "call".'), ...ASK.messages])
    expect(sent({ ...more }, model)['messages']).toEqual(ASK.messages)
    expect(sent({ tools, ...more })['messages']).toEqual(ASK.messages)
    for (const role of ['system', 'developer']) {
      expect(sent({ tools, messages: [system('Mine', role), ...ASK.messages], ...more }, model)['messages']).toEqual([
        system('Mine'),
        ...ASK.messages,
      ])
    }
  })

  test.each([
    ['low', [], 'low'],
    ['minimal', ['none', 'low', 'high'], 'low'],
    ['medium', ['none', 'low', 'high'], 'low'],
    ['max', ['none', 'low', 'high'], 'high'],
    ['none', ['low', 'medium', 'high'], 'low'],
    ['none', ['none', 'high'], 'none'],
    ['minimal', ['none', 'high'], 'high'],
    ['medium', ['none'], 'none'],
    ['xhigh', ['none', 'high', 'max'], 'high'],
  ] as const)('the effort %s of a model that knows %j is %s', (asked, known, given) => {
    expect(sent({ reasoning_effort: asked }, { rules: { ...NO_RULES, reasoningEfforts: known } })['reasoning_effort']).toBe(given)
  })

  test('images and sound of the body as they came', () => {
    const parts = [
      { type: 'image_url', image_url: { url: dataUrl('image/png', png(4, 4, 90_000)), detail: 'low' } },
      { type: 'input_audio', input_audio: { data: wav(30).toString('base64'), format: 'wav' } },
    ]
    expect(sent(user(parts), { features: FEATURES, rules: { ...NO_RULES, audioInChat: true } })).toEqual({ ...ASK, ...user(parts) })
  })
})
