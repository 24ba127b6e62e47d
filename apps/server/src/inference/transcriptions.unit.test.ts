import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, connect, createServer } from 'node:net'
import type { EngineId } from '@parvis/server/kit/ids'
import { yes } from '@parvis/server/kit/outcome'
import { aModel, startDataPlane } from '@parvis/testkit/data-plane'
import { type Script, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { readForm, writeForm } from '@parvis/wire/multipart'
import { ErrorBody } from '@parvis/wire/openai/error'
import fc from 'fast-check'
import { Client } from 'undici'
import { describe, expect, test } from 'vitest'

const PATH = '/v1/audio/transcriptions'
const SOUND = Buffer.from('RIFFnot really sound')

const SEGMENTS = [
  { id: 0, start: 0.2, end: 2.145, text: ' There are eighteen\n\nboxes.', avg_logprob: -0.2 },
  { id: 1, start: 3661.5, end: 3662, text: ' A --> B.', avg_logprob: -0.3 },
]
const TRANSCRIPT = {
  task: 'transcribe',
  language: 'english',
  text: 'There are eighteen boxes. A --> B.',
  duration: 61.234,
  segments: SEGMENTS,
  usage: { type: 'duration', seconds: 62 },
}
const USAGE = { type: 'duration', seconds: 62 }

type Fields = Readonly<Record<string, string | readonly string[]>>
const formOf = (fields: Fields, file: Uint8Array | null = SOUND): FormData => {
  const form = new FormData()
  if (file !== null) form.append('file', new Blob([new Uint8Array(file)]), 'sound.mp3')
  for (const [name, values] of Object.entries(fields)) for (const value of [values].flat()) form.append(name, value)
  return form
}

/** The data plane with a speech model, and an engine that plays this. */
const open = async (script: Script, options: Partial<Parameters<typeof startDataPlane>[0]> = {}) => {
  const engine = await startScriptedEngine(script)
  const plane = await startDataPlane({
    engine: engine.url,
    models: [aModel(), aModel({ name: 'tiny-whisper', type: 'audio', maxOutputTokens: null, contextTokens: 448 })],
    ...options,
  })
  const send = (fields: Fields, file: Uint8Array | null = SOUND): Promise<Response> =>
    plane.ask(PATH, undefined, { method: 'POST', body: formOf(fields, file) })
  return {
    engine,
    plane,
    send,
    ask: (fields: Fields = {}, file?: Uint8Array | null) => send({ model: 'tiny-whisper', ...fields }, file),
    /** What the engine was asked for, without the file. */
    asked: async () => {
      const request = engine.requests.at(-1)
      const limits = { fileField: 'file', fileBytes: 1e9, fieldBytes: 1e6, fields: 100 }
      const form = await readForm(String(request?.headers['content-type']), [request?.bytes ?? Buffer.alloc(0)], limits)
      if (!form.ok) throw new Error(form.problem)
      return { fields: Object.fromEntries(form.value.fields), file: Buffer.concat(form.value.file?.pieces ?? []) }
    },
    async [Symbol.asyncDispose]() {
      await plane.close()
      await engine.close()
    },
  }
}

const eventsOf = (text: string): unknown[] =>
  text
    .split('\n\n')
    .filter((event) => event.startsWith('data: '))
    .map((event) => (event === 'data: [DONE]' ? 'done' : (JSON.parse(event.slice(6)) as unknown)))
const stream = (...events: readonly object[]): Script => ({
  contentType: 'text/event-stream',
  raw: [...events.map((event) => `data: ${JSON.stringify(event)}\n\n`), 'data: [DONE]\n\n'],
})

test('a stream whose request no engine ever had ends in words, and nothing is written down', async () => {
  const withdrawn: string[] = []
  const server = createServer()
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const busy = new Client(origin)
  // It never answers, so that what is sent after it has to wait.
  const first = busy.request({ method: 'GET', path: '/' }).catch(() => undefined)
  const replica = { name: 'x', engineId: randomUUID() as EngineId, origin, basePath: '', remoteModel: 'x', bearer: undefined }
  try {
    await using house = await open(
      {},
      {
        limits: { pingMs: 20, firstByteMs: 200 },
        rooms: {
          withdraw: (id) => void withdrawn.push(id),
          takeSeat: (model) => Promise.resolve(yes({ replica: { ...replica, modelId: model.id }, client: busy, leave: () => undefined })),
        },
      },
    )
    const answer = await house.ask({ stream: 'true' })
    expect(answer.status).toBe(200)
    const text = await answer.text()
    expect(text).toMatch(/^: ping\n\n[^]*"error"[^]*data: \[DONE\]\n\n$/)
    expect([withdrawn, house.plane.records, house.plane.settled]).toEqual([[answer.headers.get('x-request-id')], [], [0]])
  } finally {
    await busy.destroy()
    await first
    server.close()
  }
})

test('a transcript for which there is no room is 503; its engine has worked for it and is blamed for nothing', async () => {
  const long = { ...TRANSCRIPT, text: 'x'.repeat(1_000_000) }
  await using setting = await open({ body: long }, { limits: { inflightBytes: 100_000 } })
  expect((await setting.ask()).status).toBe(503)
  expect(setting.plane.seats.left).toEqual(['clean'])
  expect(setting.plane.records).toMatchObject([{ ended: 'engine_failed', status: 503, counted: 'none' }])
})

describe('the formats', () => {
  test.each([
    [{}, 'application/json', JSON.stringify({ text: TRANSCRIPT.text, usage: USAGE })],
    [{ response_format: 'text' }, 'text/plain; charset=utf-8', `${TRANSCRIPT.text}\n`],
    [
      { response_format: 'srt' },
      'text/plain; charset=utf-8',
      '1\n00:00:00,200 --> 00:00:02,145\nThere are eighteen boxes.\n\n2\n01:01:01,500 --> 01:01:02,000\nA -> B.\n\n',
    ],
    [
      { response_format: 'vtt' },
      'text/plain; charset=utf-8',
      'WEBVTT\n\n00:00:00.200 --> 00:00:02.145\nThere are eighteen boxes.\n\n01:01:01.500 --> 01:01:02.000\nA -> B.\n\n',
    ],
    [
      { response_format: 'verbose_json' },
      'application/json',
      JSON.stringify({
        task: 'transcribe',
        language: 'english',
        duration: 61.234,
        text: TRANSCRIPT.text,
        segments: SEGMENTS,
        usage: USAGE,
      }),
    ],
  ])('%j is written as it is known', async (fields, contentType, body) => {
    await using setting = await open({ body: TRANSCRIPT })
    const answer = await setting.ask(fields)
    const text = await answer.text()
    expect([answer.status, answer.headers.get('content-type')]).toEqual([200, contentType])
    if (contentType === 'application/json') expect(JSON.parse(text)).toEqual(JSON.parse(body))
    else expect(text).toBe(body)
  })

  test('words stand where they were asked for and the engine gives them', async () => {
    const words = [{ word: 'There', start: 0.2, end: 0.4 }]
    await using setting = await open({ body: { ...TRANSCRIPT, words } })
    const answer = await setting.ask({ response_format: 'verbose_json', 'timestamp_granularities[]': 'word' })
    const body = (await answer.json()) as object
    expect(body).toMatchObject({ words })
    expect(body).not.toHaveProperty('segments')
    expect((await setting.asked()).fields).toMatchObject({ 'timestamp_granularities[]': ['word'] })
  })

  test('silence is an empty text, no subtitle, and is measured', async () => {
    await using setting = await open({ body: { text: '', duration: 5, segments: [] } })
    expect(await (await setting.ask()).json()).toEqual({ text: '', usage: { type: 'duration', seconds: 5 } })
    expect(await (await setting.ask({ response_format: 'vtt' })).text()).toBe('WEBVTT\n\n')
    expect(setting.plane.records).toMatchObject([{ audioMs: 5000 }, { audioMs: 5000 }])
  })
})

describe('what the engine gets', () => {
  test('is the file as it came, its own name of the model, and what it may know that we do not', async () => {
    await using setting = await open({ body: TRANSCRIPT }, { replica: { remoteModel: 'openai/whisper-tiny' } })
    const file = Buffer.from(Array.from({ length: 70_000 }, (_, at) => at % 251))
    await setting.ask(
      { language: 'en', prompt: 'Hello,\r\nworld', temperature: '0.2', hotwords: 'Parvis', diarize: 'true', 'include[]': 'logprobs' },
      file,
    )
    const { fields, file: sent } = await setting.asked()
    expect(fields).toEqual({
      model: ['openai/whisper-tiny'],
      response_format: ['json'],
      language: ['en'],
      prompt: ['Hello,\r\nworld'],
      temperature: ['0.2'],
      hotwords: ['Parvis'],
    })
    expect(sent.equals(file)).toBe(true)
  })

  test('names that would break out of their place are left out', async () => {
    await using setting = await open({ body: TRANSCRIPT })
    await setting.ask({ 'a"; filename="b': 'x' })
    expect(Object.keys((await setting.asked()).fields)).toEqual(['model', 'response_format'])
  })

  test('is the same wherever the connection cuts the form', async () => {
    await using setting = await open({ body: TRANSCRIPT })
    const pieces = writeForm(
      'b',
      [
        ['model', 'tiny-whisper'],
        ['prompt', 'grüße'],
      ],
      { field: 'file', name: 'x', pieces: [SOUND] },
    )
    const body = Buffer.concat(pieces)
    await fc.assert(
      fc.asyncProperty(fc.array(fc.nat(body.length), { maxLength: 6 }), async (places) => {
        const socket = connect({ port: setting.plane.port, host: '127.0.0.1' })
        socket.setNoDelay(true)
        await once(socket, 'connect')
        const head = `POST ${PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${setting.plane.key}\r\ncontent-type: multipart/form-data; boundary=b\r\ncontent-length: ${body.length}\r\nconnection: close\r\n\r\n`
        socket.write(head)
        const cuts = [0, ...places.toSorted((a, b) => a - b), body.length]
        for (const [index, end] of cuts.slice(1).entries()) {
          socket.write(body.subarray(cuts[index], end))
          await new Promise((resolve) => void setImmediate(resolve))
        }
        let text = ''
        socket.on('data', (chunk: Buffer) => {
          text += chunk.toString()
        })
        await once(socket, 'close')
        expect(text).toMatch(/^HTTP\/1\.1 200 /)
        expect(await setting.asked()).toEqual({
          fields: { model: ['tiny-whisper'], response_format: ['json'], prompt: ['grüße'] },
          file: SOUND,
        })
      }),
      { numRuns: 25 },
    )
  })
})

describe('what is refused, before an engine hears of it', () => {
  test.each<[string, Fields, Uint8Array | null, number, string | null]>([
    ['no model', {}, SOUND, 422, 'model'],
    ['an unknown model', { model: 'whisper-9' }, SOUND, 422, 'model'],
    ['a model that reads and writes', { model: 'tiny-chat' }, SOUND, 400, 'model'],
    ['no file', { model: 'tiny-whisper' }, null, 400, 'file'],
    ['an empty file', { model: 'tiny-whisper' }, new Uint8Array(0), 400, 'file'],
    ['a file of more than 25 MB', { model: 'tiny-whisper' }, new Uint8Array(25 * 1024 * 1024 + 1), 400, 'file'],
    ['speakers told apart', { model: 'tiny-whisper', response_format: 'diarized_json' }, SOUND, 400, 'response_format'],
    ['an unknown format', { model: 'tiny-whisper', response_format: 'xml' }, SOUND, 400, 'response_format'],
    ['subtitles as a stream', { model: 'tiny-whisper', response_format: 'srt', stream: 'true' }, SOUND, 400, 'response_format'],
    ['a stream that is neither wanted nor not', { model: 'tiny-whisper', stream: 'maybe' }, SOUND, 400, 'stream'],
    ['a temperature above 1', { model: 'tiny-whisper', temperature: '1.1' }, SOUND, 400, 'temperature'],
    ['a temperature that is no number', { model: 'tiny-whisper', temperature: 'hot' }, SOUND, 400, 'temperature'],
    [
      'times of syllables',
      { model: 'tiny-whisper', response_format: 'verbose_json', 'timestamp_granularities[]': 'syllable' },
      SOUND,
      400,
      'timestamp_granularities[]',
    ],
    [
      'times without a place for them',
      { model: 'tiny-whisper', 'timestamp_granularities[]': 'segment' },
      SOUND,
      400,
      'timestamp_granularities[]',
    ],
    ['a prompt without end', { model: 'tiny-whisper', prompt: 'x'.repeat(20_000) }, SOUND, 400, 'prompt'],
    ['too many fields', { model: 'tiny-whisper', a: Array.from({ length: 40 }, () => 'x') }, SOUND, 400, 'file'],
  ])('%s', async (_name, fields, file, status, param) => {
    await using setting = await open({ body: TRANSCRIPT })
    const answer = await setting.send(fields, file)
    expect(answer.status).toBe(status)
    expect(ErrorBody.parse(await answer.json()).error).toMatchObject({ param, code: status })
    expect(setting.engine.requests).toEqual([])
    expect(setting.plane.records).toEqual([])
  })

  test('a body that is no form, a form that breaks off, and one far too large', async () => {
    await using setting = await open({ body: TRANSCRIPT })
    const { plane } = setting
    const json = await plane.ask(PATH, { model: 'tiny-whisper' })
    expect(json.status).toBe(400)
    expect(await json.text()).toContain('multipart/form-data')
    const headers = { 'content-type': 'multipart/form-data; boundary=b' }
    const broken = await plane.ask(PATH, '--b\r\ncontent-disposition: form-data; name="model"\r\n\r\ntiny', { headers })
    expect(broken.status).toBe(400)
    expect(await broken.text()).toContain('The form cannot be read')
    const raw = await plane.raw()
    raw.post(PATH, '', { ...headers, 'content-length': '200000000' })
    expect(await raw.until(/HTTP\/1\.1 \d+/)).toContain('HTTP/1.1 400')
    raw.socket.destroy()
  })

  test('the key is looked at before the form, and sound has no place in a chat', async () => {
    await using setting = await open({ body: TRANSCRIPT })
    const answer = await fetch(setting.plane.url + PATH, { method: 'POST', body: formOf({ model: 'tiny-whisper' }) })
    expect(answer.status).toBe(401)
    const chat = await setting.plane.ask('/v1/chat/completions', { model: 'tiny-whisper', messages: [{ role: 'user', content: 'hi' }] })
    expect(chat.status).toBe(400)
  })
})

describe('a stream', () => {
  const OURS = [
    { type: 'transcript.text.delta', delta: 'There are ' },
    { type: 'transcript.text.delta', delta: 'boxes.' },
    { type: 'transcript.text.done', text: 'There are boxes.', duration: 61.234, usage: USAGE },
  ]
  const WANTED = [...OURS.slice(0, 2), { type: 'transcript.text.done', text: 'There are boxes.', usage: USAGE }, 'done']

  test('is handed on in order, and its duration is what is billed', async () => {
    await using setting = await open(stream(...OURS))
    const answer = await setting.ask({ stream: 'true' })
    expect(answer.headers.get('content-type')).toContain('text/event-stream')
    expect(eventsOf(await answer.text())).toEqual(WANTED)
    expect(setting.plane.records).toMatchObject([
      { endpoint: 'audio.transcriptions', audioMs: 61_234, input: 0, output: 0, counted: 'engine', ended: 'complete' },
    ])
  })

  test("of vLLM's kind becomes one of OpenAI's, and is marked as measured by nobody", async () => {
    const chunk = (content: string, finish: string | null = null) => ({
      object: 'transcription.chunk',
      choices: [{ delta: { content }, finish_reason: finish }],
    })
    await using setting = await open(stream(chunk('There are '), chunk('boxes.'), chunk('', 'stop')))
    const answer = await setting.ask({ stream: 'true' })
    expect(eventsOf(await answer.text())).toEqual([...OURS.slice(0, 2), { type: 'transcript.text.done', text: 'There are boxes.' }, 'done'])
    expect(setting.plane.records).toMatchObject([{ audioMs: 0, counted: 'none', ended: 'complete' }])
  })

  test('shows its first words while the rest is still written down, and its end only when the usage is on disk', async () => {
    let written: () => void = () => {}
    const onDisk = new Promise<void>((resolve) => {
      written = resolve
    })
    await using setting = await open(stream(...OURS), { rooms: { record: () => onDisk } })
    const answer = await setting.ask({ stream: 'true' })
    const reader = answer.body?.pipeThrough(new TextDecoderStream()).getReader()
    let text = ''
    while (!text.includes('boxes.')) text += (await reader?.read())?.value ?? ''
    expect(text).not.toContain('transcript.text.done')
    written()
    for (let read = await reader?.read(); read?.done === false; read = await reader?.read()) text += read.value
    expect(eventsOf(text)).toEqual(WANTED)
  })

  test('of silence has an end and nothing else', async () => {
    await using setting = await open(stream({ type: 'transcript.text.done', text: '', duration: 5 }))
    const answer = await setting.ask({ stream: 'true' })
    expect(eventsOf(await answer.text())).toEqual([
      { type: 'transcript.text.done', text: '', usage: { type: 'duration', seconds: 5 } },
      'done',
    ])
  })

  test('that breaks off is an error event, and is not taken for whole', async () => {
    await using setting = await open({ contentType: 'text/event-stream', raw: [`data: ${JSON.stringify(OURS[0])}\n\n`] })
    const events = eventsOf(await (await setting.ask({ stream: 'true' })).text())
    expect(events).toMatchObject([OURS[0], { error: { code: 500 } }, 'done'])
    expect(setting.plane.records).toMatchObject([{ ended: 'engine_failed', counted: 'none', audioMs: 0 }])
  })

  test('whose first word is an error, or nonsense, is an ordinary answer', async () => {
    for (const raw of [['data: {"error":{"message":"no"}}\n\n'], ['data: 7\n\n'], []]) {
      await using setting = await open({ contentType: 'text/event-stream', raw })
      const answer = await setting.ask({ stream: 'true' })
      expect(answer.status).toBe(500)
    }
  })
})

describe('an engine', () => {
  test('that refuses a file is quoted', async () => {
    const message = 'The field "file" is not valid: it is an MPEG-4 file (m4a, mp4, mov). Convert it.'
    await using setting = await open({ status: 400, body: { error: { message, type: 'BadRequestError', param: 'file', code: 400 } } })
    const answer = await setting.ask()
    expect(answer.status).toBe(400)
    expect(ErrorBody.parse(await answer.json()).error).toMatchObject({ message, param: 'file' })
  })
  test('that answers nonsense is 500', async () => {
    for (const body of [{ data: [] }, { text: 7 }, []]) {
      await using setting = await open({ body })
      expect((await setting.ask()).status).toBe(500)
    }
  })
  test('that does not measure leaves a row that says so', async () => {
    await using setting = await open({ body: { text: 'hello' } })
    expect(await (await setting.ask()).json()).toEqual({ text: 'hello' })
    expect(setting.plane.records).toMatchObject([{ counted: 'none', audioMs: 0 }])
    expect(setting.plane.log.join('')).toContain('without a duration')
  })
  test('that measures as vLLM does, in text, or as OpenAI does, in whole seconds, is understood', async () => {
    await using setting = await open({ body: { text: 'hello', duration: '4.683' } })
    await setting.ask()
    setting.engine.play({ body: { text: 'hello', usage: { type: 'duration', seconds: 5 } } })
    await setting.ask()
    expect(setting.plane.records).toMatchObject([{ audioMs: 4683 }, { audioMs: 5000 }])
  })
})

test("OpenAI's own client takes all of it", async () => {
  await using setting = await open({ body: TRANSCRIPT })
  const openai = setting.plane.openai()
  const file = new File([new Uint8Array(SOUND)], 'sound.mp3')
  expect(await openai.audio.transcriptions.create({ model: 'tiny-whisper', file })).toMatchObject({ text: TRANSCRIPT.text, usage: USAGE })
  const verbose = await openai.audio.transcriptions.create({
    model: 'tiny-whisper',
    file,
    response_format: 'verbose_json',
    timestamp_granularities: ['segment'],
  })
  expect(verbose.segments?.map(({ start }) => start)).toEqual([0.2, 3661.5])
  expect(await openai.audio.transcriptions.create({ model: 'tiny-whisper', file, response_format: 'text' })).toBe(`${TRANSCRIPT.text}\n`)
})
