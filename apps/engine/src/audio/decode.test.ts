import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { clipBytes, clips } from '../../test/clips.ts'
import { flacFile, flacSilence, programStream, sine, WAV_KINDS, wavFile } from '../../test/sound-files.ts'
import { BLOCK_SAMPLES, decodeSound, type Sound } from './decode.ts'
import { SPEECH_RATE } from './pcm.ts'

const hear = async (bytes: Uint8Array, maxSeconds = 120): Promise<Sound> => {
  const heard = await decodeSound(bytes, maxSeconds)
  if (!heard.ok) throw new Error(heard.refusal.reason)
  return heard.value
}
const samplesOf = ({ blocks }: Sound): number[] => blocks.flatMap((block) => [...block])
const reasonFor = async (bytes: Uint8Array, maxSeconds = 120): Promise<string> => {
  const heard = await decodeSound(bytes, maxSeconds)
  if (heard.ok) throw new Error('it was heard')
  return `${heard.refusal.reason} / ${heard.refusal.remedy}`
}
/** How strong a tone is, by its correlation with sine and cosine. */
const strength = (samples: readonly number[], hertz: number): number => {
  let real = 0
  let imaginary = 0
  samples.forEach((sample, at) => {
    real += sample * Math.cos((2 * Math.PI * hertz * at) / SPEECH_RATE)
    imaginary += sample * Math.sin((2 * Math.PI * hertz * at) / SPEECH_RATE)
  })
  return (2 * Math.hypot(real, imaginary)) / samples.length
}

describe('WAV files', () => {
  const tone = sine(440, 0.5, SPEECH_RATE)
  test.each(Object.entries(WAV_KINDS))('of kind %s are read, plain and extensible', async (name, kind) => {
    for (const extensible of [false, true]) {
      const sound = await hear(wavFile([tone], SPEECH_RATE, { kind, extensible }))
      expect(sound.durationMs).toBe(500)
      const worst = Math.max(...samplesOf(sound).map((sample, at) => Math.abs(sample - (tone[at] ?? 0))))
      expect(worst).toBeLessThan(name.endsWith('law') ? 0.02 : name === 'PCM 8' ? 0.01 : 0.0001)
    }
  })
  test('whose length is missing or too large are read to their end', async () => {
    for (const dataLength of [0, 0xffff_ffff, 1_000_000]) {
      expect((await hear(wavFile([tone], SPEECH_RATE, { dataLength }))).samples).toBe(8000)
    }
  })
  test('with other chunks before the sound, of odd length too, are read', async () => {
    const before = Buffer.from('LIST\u0005\0\0\0hello\0')
    expect((await hear(wavFile([tone], SPEECH_RATE, { before }))).samples).toBe(8000)
  })
  test('are mixed to the mean of their channels', async () => {
    const sound = await hear(wavFile([tone, tone.map((sample) => -sample), new Float32Array(8000).fill(0.3)], SPEECH_RATE))
    expect(samplesOf(sound).every((sample) => Math.abs(sample - 0.1) < 0.001)).toBe(true)
  })
  test('with numbers that are none do not spoil what follows', async () => {
    const poisoned = Float32Array.from(tone)
    poisoned[3] = Number.NaN
    poisoned[4] = Number.POSITIVE_INFINITY
    const sound = await hear(wavFile([poisoned], 48_000, { kind: WAV_KINDS['float 32'] as (typeof WAV_KINDS)[string] }))
    expect(samplesOf(sound).every(Number.isFinite)).toBe(true)
  })
  test('of codecs that are not read are refused with their number', async () => {
    const bytes = wavFile([tone], SPEECH_RATE)
    bytes.writeUInt16LE(0x11, 20)
    expect(await reasonFor(bytes)).toContain('format 17')
    bytes.writeUInt16LE(1, 20)
    bytes.writeUInt32LE(7, 24)
    expect(await reasonFor(bytes)).toContain('7 samples a second')
  })
})

describe('a change of the sampling rate', () => {
  test.each([8000, 11_025, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 44_101])('from %i keeps tones and length', async (rate) => {
    const sound = await hear(wavFile([sine(1000, 1, rate)], rate, { kind: WAV_KINDS['float 32'] as (typeof WAV_KINDS)[string] }))
    expect(sound.samples).toBe(SPEECH_RATE)
    const middle = samplesOf(sound).slice(1600, -1600)
    expect(strength(middle, 1000)).toBeCloseTo(0.5, 2)
    expect(Math.max(...middle)).toBeLessThan(0.51)
  })
  test('leaves nothing of what 16 kHz cannot carry', async () => {
    const sound = await hear(wavFile([sine(12_000, 1, 48_000)], 48_000))
    expect(Math.max(...samplesOf(sound).slice(1600, -1600))).toBeLessThan(0.001)
  })
})

describe('the same words', () => {
  const wav = clipBytes('02-two-sentences.wav')
  const plain = new Int16Array(wav.buffer.slice(wav.byteOffset + 44, wav.byteOffset + wav.length))
  test.each([
    ['flac', flacFile(plain, SPEECH_RATE)],
    ['mp3', clipBytes('02-two-sentences.mp3')],
    ['ogg', clipBytes('02-two-sentences.ogg')],
    ['an MPEG-1 program stream', programStream(clipBytes('02-two-sentences.mp3'), 1)],
    ['an MPEG-2 program stream', programStream(clipBytes('02-two-sentences.mp3'), 2)],
    ['flac behind an ID3 tag', Buffer.concat([Buffer.from('ID3\x04\0\0\0\0\0\x0a0123456789', 'latin1'), flacFile(plain, SPEECH_RATE)])],
  ])('in %s are as long to the sample, and sound the same', async (_format, bytes) => {
    const [one, other] = [await hear(wav), await hear(bytes)]
    expect([other.samples, other.durationMs]).toEqual([one.samples, one.durationMs])
    const [a, b] = [samplesOf(one), samplesOf(other)]
    const energy = a.reduce((sum, sample) => sum + sample ** 2, 0)
    const difference = a.reduce((sum, sample, at) => sum + (sample - (b[at] ?? 0)) ** 2, 0)
    expect(difference / energy).toBeLessThan(0.05)
  })
  test('more than half a minute of them come in blocks that are all full but the last', async () => {
    const { blocks, samples } = await hear(clipBytes('11-long.mp3'))
    expect(blocks.map(({ length }) => length)).toEqual([BLOCK_SAMPLES, BLOCK_SAMPLES, samples - 2 * BLOCK_SAMPLES])
  })
})

describe('what is no sound', () => {
  test.each([
    ['m4a', Buffer.from('\0\0\0\x20ftypM4A ', 'latin1')],
    ['WebM', Buffer.from([0x1a, 0x45, 0xdf, 0xa3, 1, 2, 3, 4])],
    ['AAC', Buffer.from([0xff, 0xf1, 0x50, 0x80, 0, 0x1f, 0xfc])],
    ['AIFF', Buffer.from('FORM\0\0\0\0AIFF')],
    ['Ogg file whose codec', Buffer.from(`OggS${'\0'.repeat(22)}\x01\x1eSpeex   1.2`, 'latin1')],
    ['none of the formats', Buffer.from('{"not":"audio"}')],
    ['WAV file without sound', wavFile([], SPEECH_RATE).subarray(0, 12)],
    ['no sound in it', wavFile([new Float32Array(0)], SPEECH_RATE)],
    ['MPEG file without sound', Buffer.from([0, 0, 1, 0xba, 0x44, 0, 4, 0, 4, 1, 0, 0, 3, 0xf8])],
  ])('is refused by its kind (%s), with a remedy', async (kind, bytes) => {
    const reason = await reasonFor(bytes)
    expect(reason).toContain(kind)
    expect(reason).toContain('ffmpeg')
  })
  test('and what is longer than the limit is refused before it is all in memory', async () => {
    expect(await reasonFor(clipBytes('11-long.mp3'), 60)).toMatch(/longer than 1 minutes.*Split/)
    // A header that promises a day: only what is there counts.
    expect((await hear(wavFile([sine(440, 1, 8000)], 8000, { dataLength: 0x7fff_ffff }), 60)).durationMs).toBe(1000)
  })
})

describe('what is small and would be large', () => {
  test('a day of silence in 400 kB is refused at the limit, and never in memory', async () => {
    const bomb = flacSilence(25_000, SPEECH_RATE)
    expect(bomb.length).toBeLessThan(500_000)
    const before = process.memoryUsage().arrayBuffers
    expect(await reasonFor(bomb, 600)).toContain('longer than 10 minutes')
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(400e6)
  })
  test('a last page that lies about the length changes nothing', async () => {
    const ogg = clipBytes('10-opus.ogg')
    const { durationMs } = await hear(ogg)
    const last = ogg.lastIndexOf('OggS')
    for (const granule of [2n ** 62n, 48_000n * 86_400n, -1n]) {
      const liar = Buffer.from(ogg)
      liar.writeBigInt64LE(granule, last + 6)
      const heard = await hear(liar)
      expect(Math.abs(heard.durationMs - durationMs)).toBeLessThan(100)
    }
  })
})

describe('damage', () => {
  const compressed = clips.map(({ file }) => file).filter((file) => !file.endsWith('.wav') && !file.startsWith('11'))
  test.each(compressed)('a piece of %s gives what is there', async (file) => {
    const bytes = clipBytes(file)
    const whole = await hear(bytes)
    for (const part of [0.35, 0.6, 0.9]) {
      const { durationMs } = await hear(bytes.subarray(0, Math.floor(bytes.length * part)))
      expect(durationMs).toBeGreaterThan(0)
      expect(durationMs).toBeLessThanOrEqual(whole.durationMs)
    }
  })
  test('of any bytes of any file is heard or refused, never worse', async () => {
    const files = [...compressed, '01-short.wav'].map(clipBytes)
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...files),
        fc.double({ min: 0.01, max: 1, noNaN: true }),
        fc.array(fc.tuple(fc.double({ min: 0, max: 0.999, noNaN: true }), fc.nat(255)), { minLength: 1, maxLength: 12 }),
        async (file, part, changes) => {
          const bytes = Buffer.from(file.subarray(0, Math.ceil(file.length * part)))
          for (const [place, value] of changes) bytes[Math.floor(place * bytes.length)] = value
          const heard = await decodeSound(bytes, 60)
          if (heard.ok) expect(heard.value.blocks.every((block) => block.every(Number.isFinite))).toBe(true)
          else expect(heard.refusal.remedy).not.toBe('')
        },
      ),
      { numRuns: 40 },
    )
  })
  test('random bytes behind a good beginning are heard or refused', async () => {
    const beginnings = ['RIFF\0\0\0\0WAVEfmt ', 'fLaC', 'OggS', 'ID3', '\0\0\x01\xba', '\xff\xfb\x90', ''].map((text) =>
      Buffer.from(text, 'latin1'),
    )
    await fc.assert(
      fc.asyncProperty(fc.constantFrom(...beginnings), fc.uint8Array({ maxLength: 4000 }), async (beginning, noise) => {
        const heard = await decodeSound(Buffer.concat([beginning, noise]), 60)
        expect(heard.ok || heard.refusal.reason !== '').toBe(true)
      }),
      { numRuns: 100 },
    )
  })
})
