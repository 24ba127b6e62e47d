import { type AudioOutcome, type Pcm, refused } from './pcm.ts'

const MAX_CHANNELS = 64
const PIECE_FRAMES = 16_384

const PCM = 0x0001
const FLOAT = 0x0003
const A_LAW = 0x0006
const MU_LAW = 0x0007
/** The real format stands at the beginning of a GUID further on. */
const EXTENSIBLE = 0xfffe

type Sample = (view: DataView, at: number) => number

/** G.711: sign, three bits of exponent, four of mantissa. */
const muLaw = (byte: number): number => {
  const bits = ~byte & 0xff
  const magnitude = ((((bits & 0x0f) << 3) + 0x84) << ((bits & 0x70) >> 4)) - 0x84
  return (bits & 0x80 ? -magnitude : magnitude) / 32_768
}
const aLaw = (byte: number): number => {
  const bits = byte ^ 0x55
  const exponent = (bits & 0x70) >> 4
  const mantissa = ((bits & 0x0f) << 4) + 8
  const magnitude = exponent === 0 ? mantissa : (mantissa + 0x100) << (exponent - 1)
  return (bits & 0x80 ? magnitude : -magnitude) / 32_768
}
const tableOf = (toSample: (byte: number) => number): Sample => {
  const table = Float32Array.from({ length: 256 }, (_, byte) => toSample(byte))
  return (view, at) => table[view.getUint8(at)] ?? 0
}

/** A file may write anything into a float, and one NaN would silence everything behind it. */
const finite = (value: number): number => (Number.isFinite(value) ? Math.max(-1, Math.min(1, value)) : 0)

const SAMPLES: Readonly<Record<string, Sample>> = {
  [`${PCM}/8`]: (view, at) => (view.getUint8(at) - 128) / 128,
  [`${PCM}/16`]: (view, at) => view.getInt16(at, true) / 32_768,
  [`${PCM}/24`]: (view, at) => (view.getInt16(at + 1, true) * 256 + view.getUint8(at)) / 8_388_608,
  [`${PCM}/32`]: (view, at) => view.getInt32(at, true) / 2_147_483_648,
  [`${FLOAT}/32`]: (view, at) => finite(view.getFloat32(at, true)),
  [`${FLOAT}/64`]: (view, at) => finite(view.getFloat64(at, true)),
  [`${A_LAW}/8`]: tableOf(aLaw),
  [`${MU_LAW}/8`]: tableOf(muLaw),
}

type Layout = { readonly sampleRate: number; readonly channels: number; readonly sampleBytes: number; readonly sample: Sample }

const readLayout = (view: DataView, at: number, length: number): AudioOutcome<Layout> => {
  if (length < 16) return refused('it is a WAV file with a broken header')
  const tag = view.getUint16(at, true)
  const format = tag === EXTENSIBLE && length >= 26 ? view.getUint16(at + 24, true) : tag
  const channels = view.getUint16(at + 2, true)
  const sampleRate = view.getUint32(at + 4, true)
  const bits = view.getUint16(at + 14, true)
  const sampleBytes = Math.ceil(bits / 8)
  const sample = SAMPLES[`${format}/${sampleBytes * 8}`]
  if (sample === undefined) return refused(`it is a WAV file with a codec that is not read here (format ${format}, ${bits} bits)`)
  if (channels < 1 || channels > MAX_CHANNELS) return refused(`it is a WAV file with ${channels} channels`)
  return { ok: true, value: { sampleRate, channels, sampleBytes, sample } }
}

/** Reads what is there: a length of 0 or beyond the end, as recorders leave it when they write to a pipe, means to the end of the file. */
export const readWav = (bytes: Uint8Array): AudioOutcome<Generator<Pcm>> => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  let layout: Layout | undefined
  for (let at = 12; at + 8 <= bytes.length; ) {
    const id = String.fromCharCode(...bytes.subarray(at, at + 4))
    const length = view.getUint32(at + 4, true)
    const start = at + 8
    const left = bytes.length - start
    if (id === 'fmt ') {
      const read = readLayout(view, start, Math.min(length, left))
      if (!read.ok) return read
      layout = read.value
    } else if (id === 'data') {
      if (layout === undefined) return refused('it is a WAV file without a description of its sound')
      return { ok: true, value: pieces(view, start, length === 0 ? left : Math.min(length, left), layout) }
    }
    at = start + length + (length % 2) // chunks begin at even places
  }
  return refused('it is a WAV file without sound')
}

function* pieces(view: DataView, start: number, length: number, layout: Layout): Generator<Pcm> {
  const { sampleRate, sampleBytes, sample } = layout
  const frameBytes = sampleBytes * layout.channels
  const frames = Math.floor(length / frameBytes)
  for (let first = 0; first < frames; first += PIECE_FRAMES) {
    const count = Math.min(PIECE_FRAMES, frames - first)
    const channels = Array.from({ length: layout.channels }, (_, channel) => {
      const values = new Float32Array(count)
      let at = start + first * frameBytes + channel * sampleBytes
      for (let frame = 0; frame < count; frame += 1) {
        values[frame] = sample(view, at)
        at += frameBytes
      }
      return values
    })
    yield { sampleRate, channels }
  }
}
