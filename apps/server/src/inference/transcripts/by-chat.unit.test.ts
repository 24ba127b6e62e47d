import { aModel, startDataPlane } from '@parvis/testkit/data-plane'
import { mp3, wav } from '@parvis/testkit/media'
import { type Script, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import OpenAI from 'openai'
import { describe, expect, test } from 'vitest'
import { NO_RULES } from '../../catalog/model.ts'

// Chat models that hear write down what is said, too (data-plane.md 11.1).

const MODEL = 'voxtral-like'
const MODELS = [
  aModel(),
  aModel({ name: MODEL, contextTokens: 32_000, maxOutputTokens: 16_384, rules: { ...NO_RULES, audioInChat: true } }),
]
const fileOf = (bytes: Buffer, name = 'a.mp3'): File => new File([new Uint8Array(bytes)], name)

const open = async (script: Script = {}) => {
  const engine = await startScriptedEngine(script)
  const plane = await startDataPlane({ engine: engine.url, models: MODELS, replica: { remoteModel: 'Org/remote' } })
  return {
    engine,
    plane,
    audio: plane.openai().audio.transcriptions,
    sent: () =>
      engine.requests.at(-1)?.json as { model: string; messages: { content: Record<string, unknown>[] }[]; [key: string]: unknown },
    async [Symbol.asyncDispose]() {
      await plane.close()
      await engine.close()
    },
  }
}

describe('a transcription by a chat model that hears', () => {
  test.each([
    ['mp3', mp3(13)],
    ['wav', wav(13)],
  ] as const)('is what it says of the sound, counted by the token (%s)', async (format, bytes) => {
    await using house = await open({ tokens: [' There are', ' eighteen boxes.'], usage: { prompt: 400, completion: 6 } })
    const answer = await house.audio.create({ model: MODEL, file: fileOf(bytes), language: 'en', prompt: 'Say "no".' })
    expect(answer).toEqual({ text: 'There are eighteen boxes.', usage: { type: 'duration', seconds: 13 } })
    expect(house.engine.requests[0]?.path).toBe('/v1/chat/completions')
    const [sound, words] = house.sent().messages[0]?.content ?? []
    expect(house.sent()).toMatchObject({ model: 'Org/remote', temperature: 0 })
    expect(sound).toEqual({ type: 'input_audio', input_audio: { data: bytes.toString('base64'), format } })
    expect(words?.['text']).toMatch(/language is "en".* where this ends: "Say \\"no\\"\."$/)
    expect(house.plane.records).toMatchObject([
      { endpoint: 'audio.transcriptions', input: 400, output: 6, audioMs: 0, counted: 'engine', ended: 'complete' },
    ])
  })

  test('gets a long sound whole', async () => {
    await using house = await open({ tokens: ['Hello.'] })
    const long = Buffer.concat([mp3(1, { counted: 100 }), Buffer.from(Array.from({ length: 2_000_003 }, (_, index) => index % 251))])
    await house.audio.create({ model: MODEL, file: fileOf(long), prompt: '\0sound\0' })
    const sound = house.sent().messages[0]?.content[0] as { input_audio: { data: string } }
    expect(Buffer.from(sound.input_audio.data, 'base64').equals(long)).toBe(true)
  })

  test('is plain text where that is asked for', async () => {
    await using house = await open({ tokens: ['Hello.'] })
    const form = new FormData()
    form.append('file', fileOf(mp3(1)))
    form.append('model', MODEL)
    form.append('response_format', 'text')
    const answer = await house.plane.ask('/v1/audio/transcriptions', undefined, { method: 'POST', body: form })
    expect([answer.headers.get('content-type'), await answer.text()]).toEqual(['text/plain; charset=utf-8', 'Hello.\n'])
  })

  test('streams while it is said, without what the model thinks beside it', async () => {
    await using house = await open({ reasoning: ['Hm.'], tokens: [' There', ' are', ' boxes.'] })
    const events: OpenAI.Audio.TranscriptionStreamEvent[] = []
    for await (const event of await house.audio.create({ model: MODEL, file: fileOf(wav(2)), stream: true })) events.push(event)
    expect(events).toEqual([
      { type: 'transcript.text.delta', delta: 'There' },
      { type: 'transcript.text.delta', delta: ' are' },
      { type: 'transcript.text.delta', delta: ' boxes.' },
      { type: 'transcript.text.done', text: 'There are boxes.', usage: { type: 'duration', seconds: 2 } },
    ])
    expect(house.plane.records).toMatchObject([{ ended: 'complete', output: 4 }])
  })

  test('that breaks off in the middle raises in the SDK', async () => {
    await using house = await open({ cutAfter: 2 })
    const reading = async (): Promise<void> => {
      for await (const _ of await house.audio.create({ model: MODEL, file: fileOf(mp3(2)), stream: true }));
    }
    await expect(reading()).rejects.toBeInstanceOf(OpenAI.APIError)
    expect(house.plane.records).toMatchObject([{ ended: 'engine_failed' }])
  })

  test.each<[string, object, Buffer, string, RegExp]>([
    ['times', { response_format: 'verbose_json' }, mp3(1), 'response_format', /knows no times/],
    ['subtitles', { response_format: 'srt' }, mp3(1), 'response_format', /knows no times/],
    ['a format that it does not hear', {}, Buffer.from('fLaC and more of it'), 'file', /takes wav and mp3.*ffmpeg/],
    ['more than half an hour', {}, mp3(1, { counted: 1_801 }), 'file', /longer than 30 minutes/],
    ['an empty file', {}, Buffer.alloc(0), 'file', /empty/],
    ['a temperature that is none', { temperature: 2 }, mp3(1), 'temperature', /0 to 1/],
  ])('is refused with %s', async (_what, fields, bytes, param, message) => {
    await using house = await open()
    const refused = house.audio.create({ model: MODEL, file: fileOf(bytes), ...fields })
    await expect(refused).rejects.toMatchObject({ status: 400, param, message: expect.stringMatching(message) as string })
    expect(house.engine.requests).toHaveLength(0)
  })

  test('is refused by one that does not hear', async () => {
    await using house = await open()
    await expect(house.audio.create({ model: 'tiny-chat', file: fileOf(mp3(1)) })).rejects.toMatchObject({ status: 400, param: 'model' })
  })
})
