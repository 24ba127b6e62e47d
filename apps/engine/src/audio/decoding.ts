import { openThread } from '../thread.ts'
import type { DecodeOrder, DecodeResult } from './decode-worker.ts'
import { refused } from './pcm.ts'

/** What is left of a thread's memory is the library's affair; of what it says about errors this much. */
const MAX_HEAP_MB = 512
/** The slowest honest file, two hours of Opus, takes a fifth of this. */
const TIME_LIMIT_MS = 120_000

const ENTRY = new URL('./decode-worker.js', import.meta.url)

/**
 * Decodes a file in a thread of its own, which ends with the file: a decoder that loops or eats memory is ended, and takes nothing
 * with it. The bytes are gone afterwards. Undefined when the signal said that nobody waits any more.
 */
export const decodeInThread = (
  bytes: Uint8Array<ArrayBuffer>,
  maxSeconds: number,
  signal: AbortSignal,
): Promise<DecodeResult | undefined> =>
  new Promise((resolve) => {
    if (signal.aborted) return resolve(undefined)
    const order: DecodeOrder = { bytes, maxSeconds }
    const worker = openThread(ENTRY, {
      workerData: order,
      transferList: [bytes.buffer],
      resourceLimits: { maxOldGenerationSizeMb: MAX_HEAP_MB },
    })
    const settle = (result: DecodeResult | undefined): void => {
      clearTimeout(timer)
      signal.removeEventListener('abort', leave)
      resolve(result)
      void worker.terminate()
    }
    const leave = (): void => settle(undefined)
    const timer = setTimeout(() => settle(refused('it takes too long to decode')), TIME_LIMIT_MS)
    signal.addEventListener('abort', leave, { once: true })
    worker.once('message', (result: DecodeResult) => settle(result))
    worker.once('error', () => settle(refused('it cannot be decoded')))
    worker.once('exit', () => settle(refused('it cannot be decoded')))
  })
