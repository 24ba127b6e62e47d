import { speak } from '@parvis/server/kit/refusal'
import { aModel } from '@parvis/testkit/data-plane'
import { wav } from '@parvis/testkit/media'
import { readForm, writeForm } from '@parvis/wire/multipart'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { type Body, piecesToBody } from './body.ts'
import { transcriptions } from './endpoints/transcriptions.ts'

// The reader of forms, with whatever a client may send as one.

const BOUNDARY = 'b0undary'
const TYPE = `multipart/form-data; boundary=${BOUNDARY}`
const MODEL = aModel({ type: 'audio', maxOutputTokens: null })
const LIMITS = { fileField: 'file', fileBytes: 1 << 20, fieldBytes: 1 << 20, fields: 100 }

const cut = (bytes: Buffer, at: readonly number[]): Body => {
  const borders = [0, ...at.map((place) => place % (bytes.length + 1)), bytes.length].toSorted((a, b) => a - b)
  return piecesToBody(
    borders.slice(1).map((end, index) => bytes.subarray(borders[index], end)),
    bytes.length,
  )
}

/** What becomes of it: a refusal in words, or the form that an engine gets, without its border, which is another each time. */
const readAs = async (body: Body, contentType: string): Promise<string> => {
  const reading = await transcriptions.read(body, contentType)
  if (!reading.ok) return JSON.stringify(speak(reading.refusal))
  const request = transcriptions.check(reading.value, MODEL)
  if (!request.ok) return JSON.stringify(speak(request.refusal))
  expect(Number.isFinite(request.value.estimate.audioSeconds)).toBe(true)
  const sent = await readForm(request.value.contentType ?? '', request.value.bytesFor('remote').pieces, LIMITS)
  if (!sent.ok) throw new Error(`the engine could not read it: ${sent.problem}`)
  const { fields, file } = sent.value
  expect(fields.get('model')).toEqual(['remote'])
  return JSON.stringify([[...fields], Buffer.concat(file?.pieces ?? []).toString('base64')])
}

const NAMES = [
  'model',
  'language',
  'prompt',
  'response_format',
  'stream',
  'temperature',
  'timestamp_granularities[]',
  'file',
  '__proto__',
  'x',
  '',
]
const VALUES = [
  'tiny-chat',
  'true',
  'false',
  'json',
  'srt',
  'verbose_json',
  'word',
  '0.5',
  'NaN',
  '',
  '\r\n',
  '"; filename="x',
  `--${BOUNDARY}--`,
]

const form = fc
  .record({
    fields: fc.array(fc.tuple(fc.constantFrom(...NAMES), fc.oneof(fc.constantFrom(...VALUES), fc.string({ maxLength: 40 }))), {
      maxLength: 8,
    }),
    file: fc.oneof(
      fc.constant(wav(1)),
      fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
    ),
    flips: fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 3 }),
    cutOff: fc.option(fc.nat(), { freq: 6 }),
    cuts: fc.array(fc.nat(), { maxLength: 12 }),
  })
  .map(({ fields, file, flips, cutOff, cuts }) => {
    let bytes = Buffer.concat(writeForm(BOUNDARY, [['model', 'm'], ...fields], { field: 'file', name: 'a.wav', pieces: [file] }))
    for (const [at, value] of flips) bytes[at % bytes.length] = value
    if (cutOff !== null) bytes = bytes.subarray(0, cutOff % bytes.length)
    return { bytes, cuts }
  })

test('a good form is handed on with our name for the model in place of the client’s', async () => {
  const bytes = Buffer.concat(
    writeForm(
      BOUNDARY,
      [
        ['model', 'm'],
        ['language', 'en'],
      ],
      { field: 'file', name: 'a', pieces: [wav(1)] },
    ),
  )
  expect(await readAs(cut(bytes, []), TYPE)).toContain('"language",["en"]')
})

test('any form is taken or refused, and the same however it was cut', async () => {
  await fc.assert(
    fc.asyncProperty(form, async ({ bytes, cuts }) => {
      expect(await readAs(cut(bytes, cuts), TYPE)).toBe(await readAs(cut(bytes, []), TYPE))
    }),
    { numRuns: 400 },
  )
})

test('bytes that are nothing are refused', async () => {
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 300 }), fc.array(fc.nat(), { maxLength: 6 }), async (bytes, cuts) => {
      expect(await readAs(cut(Buffer.from(bytes), cuts), TYPE)).toMatch(/"code":4\d\d/)
    }),
    { numRuns: 200 },
  )
})

test('any content type is taken or refused', async () => {
  const bytes = Buffer.concat(writeForm(BOUNDARY, [['model', 'm']], { field: 'file', name: 'a', pieces: [wav(1)] }))
  await fc.assert(
    fc.asyncProperty(
      fc.string({ maxLength: 80 }),
      fc.constantFrom('', 'multipart/form-data; ', 'multipart/form-data; boundary='),
      async (text, head) => {
        expect((await readAs(cut(bytes, []), head + text)).length).toBeGreaterThan(0)
      },
    ),
    { numRuns: 200 },
  )
})
