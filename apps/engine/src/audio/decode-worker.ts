import { parentPort, workerData } from 'node:worker_threads'
import { decodeSound, type Sound } from './decode.ts'
import type { AudioOutcome } from './pcm.ts'

/** The beginning of a thread that decodes one file, tells the sound, and ends. */
export type DecodeOrder = { readonly bytes: Uint8Array; readonly maxSeconds: number }
export type DecodeResult = AudioOutcome<Sound>

// The decoders complain about every damaged frame, and a damaged file has a million of them.
// oxlint-disable-next-line no-console -- silenced, not used
console.error = () => {}
// oxlint-disable-next-line no-console -- silenced, not used
console.warn = () => {}

const { bytes, maxSeconds } = workerData as DecodeOrder
const result: DecodeResult = await decodeSound(bytes, maxSeconds)
parentPort?.postMessage(result, result.ok ? result.value.blocks.map((block) => block.buffer as ArrayBuffer) : [])
