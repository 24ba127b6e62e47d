import { cpuMs } from '@parvis/testkit/cpu'
import { dataUrl, gif, jpeg, mp3, png, wav, webp } from '@parvis/testkit/media'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { NO_RULES } from '../../catalog/model.ts'
import { type Body, bufferToBody } from '../body.ts'
import { base64At, bufferToPacked, whereOf } from './data-url.ts'
import { readImage } from './images.ts'
import { readSound } from './sound.ts'
import { imageTokens, soundTokens } from './tokens.ts'

const image = (bytes: Buffer) => {
  const read = readImage(bufferToPacked(bytes))
  return read.ok ? read.value : read.refusal
}
const sound = (bytes: Buffer, format: 'wav' | 'mp3'): number | string => {
  const read = readSound(bufferToPacked(bytes), format)
  return read.ok ? read.value.seconds : read.refusal
}

describe('an image', () => {
  test.each([
    ['image/png', png(300, 200)],
    ['image/jpeg', jpeg(300, 200)],
    ['image/webp', webp(300, 200)],
    ['image/gif', gif(300, 200)],
  ])('of type %s is known by its bytes', (type, bytes) => {
    expect(image(bytes)).toEqual({ type, width: 300, height: 200 })
  })

  test('that a camera has turned is as high as it is wide', () => {
    expect(image(jpeg(300, 200, { orientation: 1 }))).toMatchObject({ width: 300, height: 200 })
    expect(image(jpeg(300, 200, { orientation: 6 }))).toMatchObject({ width: 200, height: 300 })
  })

  test('with a long preface is read behind it, and a preface without end is not', () => {
    expect(image(jpeg(300, 200, { preface: 200_000 }))).toMatchObject({ width: 300 })
    expect(image(jpeg(300, 200, { preface: 900_000 }))).toBe('the size of the image cannot be read')
  })

  test('of 32 million pixels is the largest', () => {
    expect(image(png(8000, 4000))).toMatchObject({ width: 8000 })
    expect(image(png(8001, 4000))).toBe('the image has 8001 × 4000 pixels, and 32000000 are the most')
  })

  test('of 20 MB is the largest', () => {
    expect(image(png(1, 1, 20 * 2 ** 20 - 100))).toMatchObject({ width: 1 })
    expect(image(png(1, 1, 20 * 2 ** 20))).toBe('the image is larger than 20 MB')
  })

  test('that moves is refused, and one that only could is not', () => {
    expect(image(gif(3, 3, 1))).toMatchObject({ type: 'image/gif' })
    expect(image(gif(3, 3, 2))).toBe('animated GIF images are not supported')
    expect(image(gif(3, 3, 1).subarray(0, 30))).toMatchObject({ type: 'image/gif' })
  })

  test.each([
    ['SVG', Buffer.from('<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>')],
    ['PDF', Buffer.from('%PDF-1.7')],
    ['BMP', Buffer.from('BM000000000000000000000000000000')],
    ['PSD', Buffer.from('8BPS\0\x01')],
    ['a WAV file, which is a RIFF file, too', wav(1)],
    ['nothing', Buffer.alloc(0)],
    ['a word', Buffer.from('hello')],
  ])('is not %s', (_what, bytes) => {
    expect(image(bytes)).toBe('it is not a PNG, JPEG, WEBP or GIF image')
  })

  test('without a size is refused', () => {
    for (const bytes of [png(0, 5), gif(0, 0), png(5, 5).subarray(0, 12), jpeg(5, 5).subarray(0, 20), webp(5, 5).subarray(0, 14)]) {
      expect(image(bytes)).toBe('the size of the image cannot be read')
    }
  })

  test('of any bytes whatever is read or refused, and never costs long', () => {
    const starts = [png(9, 9), jpeg(9, 9), gif(9, 9, 3), webp(9, 9)].map((bytes) => bytes.subarray(0, 24))
    fc.assert(
      fc.property(fc.constantFrom(...starts), fc.uint8Array({ maxLength: 300 }), (start, rest) => {
        expect(typeof image(Buffer.concat([start, rest]))).toMatch(/string|object/)
      }),
      { numRuns: 2000 },
    )
    const before = cpuMs()
    for (const start of starts) image(Buffer.concat([start, Buffer.alloc(10 * 2 ** 20, 0x01)]))
    expect(cpuMs() - before).toBeLessThan(2_000)
  })
})

describe('a sound', () => {
  test.each([0.5, 13, 178, 1500])('of %d s has this length in both formats', (seconds) => {
    expect(sound(wav(seconds), 'wav')).toBeCloseTo(seconds, 1)
    expect(sound(wav(seconds, { lengthUnknown: true }), 'wav')).toBeCloseTo(seconds, 1)
    expect(sound(mp3(seconds), 'mp3')).toBeCloseTo(seconds, 1)
    expect(sound(mp3(seconds, { tag: 100_000 }), 'mp3')).toBeCloseTo(seconds, 1)
  })

  test('is as long as its encoder has counted', () => {
    expect(sound(mp3(2, { counted: 1234 }), 'mp3')).toBeCloseTo(1234, 0)
  })

  test('is what its format says, and at most forty minutes and 25 MB', () => {
    expect(sound(mp3(1), 'wav')).toBe('it is not a WAV file')
    expect(sound(wav(1), 'mp3')).toBe('it is not an MP3 file')
    expect(sound(Buffer.alloc(0), 'mp3')).toBe('it is not an MP3 file')
    expect(sound(wav(2_400), 'wav')).toBe(2_400)
    expect(sound(wav(2_401), 'wav')).toBe('the audio is longer than 40 minutes')
    expect(sound(mp3(1, { counted: 2_500 }), 'mp3')).toBe('the audio is longer than 40 minutes')
    expect(sound(Buffer.alloc(26 * 2 ** 20), 'wav')).toBe('the audio is larger than 25 MB')
  })
})

describe('tokens', () => {
  const rules = (imageTokenPx: number, imageMaxPx: number | null) => ({ ...NO_RULES, imageTokenPx, imageMaxPx })

  test.each([
    [28, 1540, 1540, 1540, 3025],
    [28, 1540, 3080, 3080, 3025],
    [28, 1540, 3080, 1540, 55 * 28],
    [28, 1540, 28, 29, 2],
    [28, 1540, 1, 1, 1],
    [16, 1024, 4096, 1024, 64 * 16],
    [32, 4096, 8000, 4000, 128 * 64],
    [16, null, 1600, 160, 1000],
  ])('squares of %d in %d: %d × %d pixels are %d', (square, most, width, height, count) => {
    expect(imageTokens(rules(square, most), { width, height })).toBe(count)
  })

  test('an image that is not there yet counts for the most it can be', () => {
    expect(imageTokens(rules(28, 1540), undefined)).toBe(3025)
    expect(imageTokens(NO_RULES, undefined)).toBe(1_500)
  })

  test.each([
    [0.1, 375],
    [13, 375],
    [30, 375],
    [30.5, 750],
    [178, 2_250],
  ])('%d s of sound are %d', (seconds, count) => {
    expect(soundTokens(seconds)).toBe(count)
  })
})

describe('base64 in a body', () => {
  const cut = (bytes: Buffer, size: number): Body => ({
    pieces: Array.from({ length: Math.ceil(bytes.length / size) }, (_, index) => bytes.subarray(index * size, (index + 1) * size)),
    bytes: bytes.length,
  })

  test('is read at any place, however the body is cut and the string is escaped', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 1, maxLength: 200 }),
        fc.nat(210),
        fc.nat(210),
        fc.integer({ min: 1, max: 50 }),
        fc.boolean(),
        (raw, start, length, size, escaped) => {
          const bytes = Buffer.from(raw)
          const text = JSON.stringify(bytes.toString('base64'))
          const body = cut(Buffer.from(`  ${escaped ? text.replaceAll('/', '\\/') : text}`), size)
          const packed = base64At(body, { start: 2, end: body.bytes })
          expect(packed.length).toBe(bytes.length)
          expect(packed.at(start, length)).toEqual(bytes.subarray(start, start + length))
        },
      ),
      { numRuns: 2000 },
    )
  })

  test.each([
    [dataUrl('image/png', png(7, 7)), 'data'],
    ['DATA:;BASE64,AAAA', 'data'],
    ['data:image/png,AAAA', 'other'],
    ['https://example.com/a.png', 'web'],
    ['HTTP://example.com', 'web'],
    ['file:///etc/passwd', 'other'],
    [' https://example.com/', 'other'],
    ['/a.png', 'other'],
    ['', 'other'],
  ])('%s is of kind %s', (url, kind) => {
    for (const text of [JSON.stringify(url), JSON.stringify(url).replaceAll('/', '\\/')]) {
      const body = bufferToBody(Buffer.from(text))
      const where = whereOf(body, { start: 0, end: body.bytes })
      expect(where.kind).toBe(kind)
      if (where.kind === 'data' && url.includes('png')) expect(where.packed.at(0, 9_999)).toEqual(png(7, 7))
      if (where.kind === 'web') expect(where.url).toBe(url)
    }
  })
})
