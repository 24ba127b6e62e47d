import { decodeCompressed } from './decoders.ts'
import { detect } from './detect.ts'
import { type AudioOutcome, type Pcm, refused, SPEECH_RATE } from './pcm.ts'
import { audioOfProgramStream } from './program-stream.ts'
import { openResampler, type Resampler } from './resample.ts'
import { readWav } from './wav.ts'

/** Below and above, a rate is a broken header, and the tables of the resampler would be as large as it likes. */
const MIN_RATE = 1_000
const MAX_RATE = 384_000

/** Sound as Whisper takes it: one channel, 16,000 samples a second, in blocks that are all full but the last. */
export type Sound = {
  readonly blocks: readonly Float32Array[]
  readonly samples: number
  /** Of the file's own samples, not of the resampled ones: a bill rests on it (data-plane.md 11.3). */
  readonly durationMs: number
}

export const BLOCK_SAMPLES = 30 * SPEECH_RATE

const piecesOf = (bytes: Uint8Array): AudioOutcome<Iterable<Pcm> | AsyncIterable<Pcm>> => {
  const format = detect(bytes)
  if (!format.ok) return format
  if (format.value === 'wav') return readWav(bytes)
  if (format.value !== 'mpeg-program-stream') return { ok: true, value: decodeCompressed(format.value, bytes) }
  const audio = audioOfProgramStream(bytes)
  if (audio.length === 0) return refused('it is an MPEG file without sound')
  return { ok: true, value: decodeCompressed('mpeg-audio', audio) }
}

/** The mean of the channels (data-plane.md 11.2). */
const mix = (channels: readonly Float32Array[]): Float32Array => {
  const [first, second] = channels
  if (first === undefined) return new Float32Array(0)
  if (second === undefined) return first
  const mixed = new Float32Array(first.length)
  for (const channel of channels) for (let at = 0; at < mixed.length; at += 1) mixed[at] = (mixed[at] as number) + (channel[at] as number)
  for (let at = 0; at < mixed.length; at += 1) mixed[at] = (mixed[at] as number) / channels.length
  return mixed
}

/**
 * Decodes a file, whatever it is, up to `maxSeconds`; what is longer is refused as soon as that shows, so that memory is bounded by
 * the limit and not by what a header claims. A file that breaks off or is damaged gives what there is, if it is anything.
 */
export const decodeSound = async (bytes: Uint8Array, maxSeconds: number): Promise<AudioOutcome<Sound>> => {
  const pieces = piecesOf(bytes)
  if (!pieces.ok) return pieces

  const blocks: Float32Array[] = []
  let samples = 0
  const add = (resampled: Float32Array): void => {
    for (let at = 0; at < resampled.length; ) {
      const inBlock = samples % BLOCK_SAMPLES
      if (inBlock === 0) blocks.push(new Float32Array(BLOCK_SAMPLES))
      const part = resampled.subarray(at, at + BLOCK_SAMPLES - inBlock)
      blocks.at(-1)?.set(part, inBlock)
      samples += part.length
      at += part.length
    }
  }

  let rate = 0
  let resampler: Resampler | undefined
  let seconds = 0
  let broken: unknown
  try {
    for await (const { sampleRate, channels } of pieces.value) {
      if (sampleRate < MIN_RATE || sampleRate > MAX_RATE) return refused(`it has ${sampleRate} samples a second`)
      if (sampleRate !== rate) {
        if (resampler !== undefined) add(resampler.end())
        resampler = openResampler(sampleRate, SPEECH_RATE)
        rate = sampleRate
      }
      const mixed = mix(channels)
      seconds += mixed.length / sampleRate
      if (seconds > maxSeconds) {
        return refused(`it is longer than ${Math.floor(maxSeconds / 60)} minutes`, 'Split it, and send the parts one after the other.')
      }
      if (resampler !== undefined) add(resampler.push(mixed))
    }
  } catch (error) {
    broken = error
  }
  if (resampler !== undefined) add(resampler.end())
  if (samples === 0) return refused(broken === undefined ? 'there is no sound in it' : 'it cannot be decoded')

  const last = blocks.at(-1)
  if (last !== undefined && samples % BLOCK_SAMPLES > 0) blocks[blocks.length - 1] = last.slice(0, samples % BLOCK_SAMPLES)
  return { ok: true, value: { blocks, samples, durationMs: Math.round(seconds * 1000) } }
}
