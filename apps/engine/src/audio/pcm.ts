/** Sound as it comes out of a decoder, in pieces: one array per channel, all of the same length, from -1 to 1. */
export type Pcm = { readonly sampleRate: number; readonly channels: readonly Float32Array[] }

/** What a decoder says when a file is not what it looked like; `remedy` tells what to do about it. */
export type AudioRefusal = { readonly reason: string; readonly remedy: string }
export type AudioOutcome<T> = { readonly ok: true; readonly value: T } | { readonly ok: false; readonly refusal: AudioRefusal }

export const CONVERT = 'Convert it, for example with "ffmpeg -i input -ac 1 -ar 16000 output.flac", and send that.'

export const refused = (reason: string, remedy = CONVERT): { readonly ok: false; readonly refusal: AudioRefusal } => ({
  ok: false,
  refusal: { reason, remedy },
})

/** Whisper hears this many samples a second, in one channel. */
export const SPEECH_RATE = 16_000
