import { createReadStream, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import type OpenAI from 'openai'
import { afterAll, beforeAll, expect, test } from 'vitest'

// The whole path of a spoken word: the official SDK, the server, the embedded engine, the tiny speech model.

const MODEL = 'tiny-whisper'
const CLIPS = fileURLToPath(new URL('../../engine/test-clips/', import.meta.url))
const clip = (name: string) => createReadStream(CLIPS + name)

let database: TestDatabase
let house: TestHouse
let openai: OpenAI

beforeAll(async () => {
  database = await freshDatabase()
  house = await startHouse({ database, settings: { PARVIS_DEMO_MODELS: 'true' }, checksInference: true })
  openai = house.openai()
  await house.ready(MODEL)
})

afterAll(async () => {
  await house?.stop()
  await database?.drop()
})

/** Until the ledger has this many events of the endpoint, with what they measured. */
const measured = async (count: number): Promise<number[]> => {
  for (let waited = 0; ; waited += 50) {
    const { rows } = await house.db.query<{ audio_milliseconds: bigint }>(
      `select audio_milliseconds from usage_event where endpoint = 'audio.transcriptions' and charged order by accepted_at`,
    )
    if (rows.length >= count) return rows.map((row) => Number(row.audio_milliseconds))
    if (waited > 20_000) throw new Error(`only ${rows.length} of ${count} events in the ledger`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

test('the same words in wav, mp3 and ogg are the same text, and the same milliseconds on the bill', async () => {
  const texts: string[] = []
  for (const format of ['wav', 'mp3', 'ogg']) {
    const { text } = await openai.audio.transcriptions.create({ model: MODEL, file: clip(`02-two-sentences.${format}`) })
    texts.push(text)
  }
  expect(new Set(texts)).toEqual(new Set(['There are eighteen boxes in the kitchen. The happy lion is in the house.']))
  expect(await measured(3)).toEqual([4792, 4792, 4792])
})

test('segments, subtitles and plain text', async () => {
  const ask = { model: MODEL, language: 'en', temperature: 0 }
  const verbose = await openai.audio.transcriptions.create({ ...ask, file: clip('05.flac'), response_format: 'verbose_json' })
  expect(verbose).toMatchObject({ language: 'english', duration: 4.551 })
  expect(verbose.segments?.map(({ text }) => text.trim())).toEqual(['Twenty three plus forty one.', 'Turn off the alarm in the house.'])
  const srt = await openai.audio.transcriptions.create({ ...ask, file: clip('05.flac'), response_format: 'srt' })
  expect(srt).toMatch(/^1\n00:00:00,\d{3} --> 00:00:01,\d{3}\nTwenty three plus forty one\.\n\n2\n/)
  const text = await openai.audio.transcriptions.create({ ...ask, file: clip('10-opus.ogg'), response_format: 'text' })
  expect(text).toBe('The old duck is in the city.\n')
  expect(await openai.audio.transcriptions.create({ ...ask, file: clip('12-silence.wav') })).toMatchObject({ text: '' })
})

test('a minute of speech is read out while it is written down', async () => {
  const stream = await openai.audio.transcriptions.create({ model: MODEL, file: clip('11-long.mp3'), stream: true })
  let text = ''
  let deltas = 0
  let whole: string | undefined
  for await (const event of stream) {
    if (event.type === 'transcript.text.delta') {
      text += event.delta
      deltas += 1
    } else if (event.type === 'transcript.text.done') whole = event.text
  }
  expect(deltas).toBeGreaterThan(3)
  expect(whole).toBe(text)
  expect(text).toContain('Paul is going to Paris in June.')
})

test('what is no sound is refused with what to do, and nothing is charged for it', async () => {
  const before = (await measured(8)).length // of the tests above
  const m4a = new File([Buffer.from('\0\0\0\x20ftypM4A \0\0\0\0', 'latin1')], 'memo.m4a')
  const refused = openai.audio.transcriptions.create({ model: MODEL, file: m4a })
  await expect(refused).rejects.toMatchObject({ status: 400, param: 'file', message: expect.stringContaining('ffmpeg') })
  const word = openai.audio.transcriptions.create({
    model: MODEL,
    file: new File([readFileSync(`${CLIPS}01-short.wav`)], 'x.wav'),
    response_format: 'verbose_json',
    timestamp_granularities: ['word'],
  })
  await expect(word).rejects.toMatchObject({ status: 400, message: expect.stringContaining('segments') })
  expect((await measured(before)).length).toBe(before)
})
