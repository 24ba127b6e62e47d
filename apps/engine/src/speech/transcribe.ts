import { BLOCK_SAMPLES } from '../audio/decode.ts'
import { SPEECH_RATE } from '../audio/pcm.ts'
import { type Manner, roundMs, type Segment, type Whisper } from './whisper.ts'

const WINDOW_SAMPLES = 30 * SPEECH_RATE
/** A last bit shorter than this has no word in it, and the reference leaves it out, too. */
const MIN_SAMPLES = SPEECH_RATE / 10
/** A window that ends where it began would be read for ever. */
const MIN_STEP_SAMPLES = SPEECH_RATE

/** Part of the sound, across its blocks. */
const samplesFrom = (blocks: readonly Float32Array[], total: number, start: number): Float32Array => {
  const window = new Float32Array(Math.min(WINDOW_SAMPLES, total - start))
  for (let filled = 0; filled < window.length; ) {
    const at = start + filled
    const block = blocks[Math.floor(at / BLOCK_SAMPLES)]
    if (block === undefined) break
    const offset = at % BLOCK_SAMPLES
    const part = block.subarray(offset, offset + window.length - filled)
    if (part.length === 0) break
    window.set(part, filled)
    filled += part.length
  }
  return window
}

/**
 * Writes a file down, half a minute at a time: what a window tells completely is kept, and the next window begins where that ends. `tell`
 * gets the segments of each window as they are known. Says which language was heard first, or undefined when it was broken off.
 */
export const transcribe = async (
  whisper: Whisper,
  sound: { readonly blocks: readonly Float32Array[]; readonly samples: number },
  manner: Manner,
  tell: (segments: readonly Segment[]) => void,
  isOver: () => boolean,
): Promise<{ language: string | undefined } | undefined> => {
  let language = manner.language
  for (let at = 0; at === 0 || sound.samples - at >= MIN_SAMPLES; ) {
    const samples = samplesFrom(sound.blocks, sound.samples, at)
    // What was heard at first holds for the file, and the prompt is what was said before it.
    const written = await whisper.writeWindow(samples, { ...manner, language, prompt: at === 0 ? manner.prompt : '' }, isOver)
    if (written === undefined) return undefined
    language ??= written.language
    const offset = at / SPEECH_RATE
    tell(written.segments.map((segment) => ({ ...segment, start: roundMs(offset + segment.start), end: roundMs(offset + segment.end) })))
    at += Math.max(Math.round(written.doneSeconds * SPEECH_RATE), Math.min(MIN_STEP_SAMPLES, samples.length))
  }
  return { language }
}
