import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Clip, clipBytes, clips, transcriptionForm, wordErrors } from '../../test/clips.ts'
import { type EngineProcess, type Json, startEngine, until } from '../../test/engine-process.ts'

const PATH = '/v1/audio/transcriptions'
const LONG = '11-long.mp3'
const SILENCE = '12-silence.wav'

let engine: EngineProcess
beforeAll(async () => {
  engine = await startEngine('tiny-whisper', ['--max-audio-minutes', '2', '--max-waiting', '3'])
})
afterAll(() => engine.stop())

const send = (bytes: Uint8Array, fields: Record<string, string> = {}, signal?: AbortSignal): Promise<Response> =>
  fetch(engine.url + PATH, { method: 'POST', body: transcriptionForm(bytes, fields), ...(signal === undefined ? {} : { signal }) })
const write = async (bytes: Uint8Array, fields: Record<string, string> = {}): Promise<Json> => {
  const response = await send(bytes, fields)
  const value: Json = await response.json()
  if (response.status !== 200) throw new Error(`${response.status}: ${JSON.stringify(value)}`)
  return value
}
/** The long clip, written down once for those who only look at it. */
let long: Promise<Json> | undefined
const writeLong = (): Promise<Json> => (long ??= write(clipBytes(LONG), { response_format: 'verbose_json' }))
const refusal = async (bytes: Uint8Array, fields: Record<string, string> = {}) => {
  const response = await send(bytes, fields)
  return { status: response.status, error: ((await response.json()) as Json).error }
}

describe('the clips', () => {
  test('are written down as well as the model can, and measured to the hundredth of a second', async () => {
    const lines: string[] = []
    const sums = { short: { errors: 0, words: 0 }, long: { errors: 0, words: 0 } }
    const measure = async (clip: Clip): Promise<void> => {
      const { text, duration, usage } = await (clip.file === LONG ? writeLong() : write(clipBytes(clip.file)))
      expect(Math.abs(duration - clip.duration)).toBeLessThan(0.01)
      expect(usage).toEqual({ type: 'duration', seconds: Math.ceil(duration) })
      const { errors, words } = wordErrors(clip.text, text)
      const sum = clip.file === LONG ? sums.long : sums.short
      sum.errors += errors
      sum.words += words
      lines.push(`${clip.file}: ${errors} of ${words}`)
    }
    for (const clip of clips) await measure(clip)
    const rate = ({ errors, words }: { errors: number; words: number }): number => errors / words
    process.stdout.write(
      `word errors\n  ${lines.join('\n  ')}\n  short: ${(100 * rate(sums.short)).toFixed(1)} %, long: ${(100 * rate(sums.long)).toFixed(1)} %\n`,
    )
    expect(rate(sums.short)).toBeLessThan(0.15)
    // Its card measures 65 % with other programs: sentences are dropped where many follow each other.
    expect(rate(sums.long)).toBeLessThan(0.65)
  })

  test('that say the same in another format have the same text and duration', async () => {
    const texts = await Promise.all(['wav', 'mp3', 'ogg'].map((format) => write(clipBytes(`02-two-sentences.${format}`))))
    expect(new Set(texts.map((text) => JSON.stringify(text))).size).toBe(1)
  })

  test('that are silent have no text and no segments, and are measured all the same', async () => {
    expect(await write(clipBytes(SILENCE), { response_format: 'verbose_json' })).toMatchObject({ text: '', segments: [], duration: 5 })
  })

  test('have segments whose times follow each other, within the file', async () => {
    const { segments, text, language, duration } = await writeLong()
    expect(language).toBe('english')
    expect(segments.length).toBeGreaterThan(15)
    expect(
      segments
        .map((segment: Json) => segment.text)
        .join('')
        .trim(),
    ).toBe(text)
    let before = 0
    for (const [index, segment] of segments.entries()) {
      expect(segment.id).toBe(index)
      expect(segment.start).toBeGreaterThanOrEqual(before)
      expect(segment.end).toBeGreaterThan(segment.start)
      expect(segment.end).toBeLessThanOrEqual(duration)
      expect(segment.avg_logprob).toBeLessThan(0)
      expect(segment.no_speech_prob).toBeLessThan(0.6)
      before = segment.end
    }
    expect(before).toBeGreaterThan(60)
  })

  test('are written down while they are read: what a stream says together is what is said at once', async () => {
    const whole = await writeLong()
    const response = await send(clipBytes(LONG), { stream: 'true' })
    expect(response.headers.get('content-type')).toContain('text/event-stream')
    const events = (await response.text()).split('\n\n')
    expect(events.splice(-2)).toEqual(['data: [DONE]', ''])
    const parsed = events.map((event): Json => JSON.parse(event.slice('data: '.length)))
    const done = parsed.pop()
    expect(parsed.length).toBeGreaterThan(3)
    expect(new Set(parsed.map(({ type }) => type))).toEqual(new Set(['transcript.text.delta']))
    expect(parsed.map(({ delta }) => delta).join('')).toBe(whole.text)
    expect(done).toMatchObject({ type: 'transcript.text.done', text: whole.text, duration: whole.duration, usage: whole.usage })
  })
})

describe('the fields', () => {
  const short = clipBytes('04-telephone-8k.wav')
  test('that mean nothing to this model are refused by name, those of its own language are not', async () => {
    expect((await write(short, { language: 'en' })).text).toBe((await write(short, { language: 'en-GB' })).text)
    expect(await refusal(short, { language: 'fr' })).toMatchObject({ status: 400, error: { param: 'language' } })
    expect(await refusal(short, { 'timestamp_granularities[]': 'word', response_format: 'verbose_json' })).toMatchObject({
      status: 400,
      error: { param: 'timestamp_granularities[]', message: expect.stringContaining('times of segments, not of words') },
    })
    expect(await refusal(short, { temperature: '1.5' })).toMatchObject({ status: 400, error: { param: 'temperature' } })
    expect(await refusal(short, { temperature: 'warm' })).toMatchObject({ status: 400, error: { param: 'temperature' } })
    expect(await refusal(short, { response_format: 'srt' })).toMatchObject({ status: 400, error: { param: 'response_format' } })
    expect(await refusal(short, { model: 'whisper-large-v3' })).toMatchObject({ status: 422, error: { param: 'model' } })
  })
  test('prompt and temperature are used, and control tokens in a prompt are nothing but text', async () => {
    expect((await write(short, { prompt: '<|endoftext|><|startoftranscript|> Send the horse to David.', temperature: '0' })).text).not.toBe(
      '',
    )
    const warm = await write(short, { temperature: '1', response_format: 'verbose_json' })
    for (const segment of warm.segments) expect(segment.temperature).toBe(1)
  })
})

describe('what cannot be heard', () => {
  const M4A = Buffer.concat([Buffer.from([0, 0, 0, 32]), Buffer.from('ftypM4A isommp42'), Buffer.alloc(2000, 3)])
  test('is refused with what it is and what to do', async () => {
    for (const [bytes, what] of [
      [M4A, 'm4a'],
      [Buffer.from([0x1a, 0x45, 0xdf, 0xa3, ...Buffer.alloc(100)]), 'WebM'],
      [Buffer.from('The quick brown fox jumps over the lazy dog.'), 'none of the formats'],
    ] as const) {
      const { status, error } = await refusal(bytes)
      expect(status).toBe(400)
      expect(error.param).toBe('file')
      expect(error.message).toContain(what)
      expect(error.message).toContain('ffmpeg')
    }
    expect((await refusal(Buffer.alloc(0))).error).toMatchObject({ param: 'file', message: expect.stringContaining('empty') })
  })
  test('is refused when it is longer than the limit, however small the file', async () => {
    // Three minutes of 1-bit-like silence at 8 kHz in mu-law.
    const header = Buffer.alloc(44)
    clipBytes('04-telephone-8k.wav').copy(header, 0, 0, 44)
    header.writeUInt16LE(7, 20)
    header.writeUInt32LE(8000, 24)
    header.writeUInt16LE(1, 32)
    header.writeUInt16LE(8, 34)
    header.writeUInt32LE(0, 40)
    const { status, error } = await refusal(Buffer.concat([header, Buffer.alloc(180 * 8000, 0xff)]))
    expect(status).toBe(400)
    expect(error.message).toContain('longer than 2 minutes')
    expect(error.message).toContain('Split')
  })
  test('is refused when it is no form, has no file, or more than 25 MB', async () => {
    const json = await fetch(engine.url + PATH, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{}' })
    expect(json.status).toBe(400)
    const empty = new FormData()
    empty.append('model', 'tiny-whisper')
    const missing = await fetch(engine.url + PATH, { method: 'POST', body: empty })
    expect(await missing.json()).toMatchObject({ error: { param: 'file' } })
    expect(await refusal(Buffer.alloc(25 * 1024 * 1024 + 1))).toMatchObject({
      status: 400,
      error: { param: 'file', message: expect.stringContaining('25 MB') },
    })
  })
  test('and other endpoints are not there', async () => {
    expect((await engine.send('/v1/chat/completions', {})).status).toBe(404)
  })
})

describe('many at once', () => {
  const health = async (): Promise<Json> => (await fetch(`${engine.url}/health`)).json()
  test('health answers while a file is written down, a client that leaves makes room, and too many are told to come back', async () => {
    const leaving = new AbortController()
    const left = send(clipBytes(LONG), {}, leaving.signal).then(
      () => 'answered',
      () => 'left',
    )
    await until('the file is at work', async () => (await health()).busy === 1)
    const waiting = Array.from({ length: 3 }, () => write(clipBytes('06-48k.flac')))
    await until('three wait', async () => (await health()).waiting === 3)
    const tooMany = await send(clipBytes('06-48k.flac'))
    expect(tooMany.status).toBe(503)
    expect(tooMany.headers.get('retry-after')).toBe('1')
    leaving.abort()
    expect(await left).toBe('left')
    const texts = await Promise.all(waiting)
    expect(new Set(texts.map(({ text }) => text))).toEqual(new Set(['Fifty plus sixteen.']))
    await until('nobody is there any more', async () => (await health()).busy === 0)
    expect(await health()).toMatchObject({ status: 'ok', busy: 0, waiting: 0 })
  })
})
