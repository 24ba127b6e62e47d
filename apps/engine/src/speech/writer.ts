import type { Sound } from '../audio/decode.ts'
import { faultOf } from '../log.ts'
import { openThread } from '../thread.ts'
import type { FromModel, ModelOrder, ToModel } from './model-worker.ts'
import type { Manner, Segment } from './whisper.ts'

const ENTRY = new URL('./model-worker.js', import.meta.url)

/** The thread could not write a file down. Its message is made for the log: nothing of the file is in it. */
export class Broken extends Error {}

export type Writer = {
  /** Codes of the languages that it can be told; empty for a model that knows one. */
  readonly languages: readonly string[]
  /** One file at a time: who calls waits for the end of the one before. Resolves to undefined once a stop has taken effect. */
  write(
    sound: Sound,
    manner: Manner,
    tell: (segments: readonly Segment[]) => void,
    signal: AbortSignal,
  ): Promise<{ language: string | undefined } | undefined>
  close(): Promise<unknown>
}

/** Starts the thread with the model in it. `died` is told when it ends by itself, after which nothing here can be used. */
export const openWriter = (order: ModelOrder, died: (reason: string) => void): Promise<Writer> =>
  new Promise((resolve, reject) => {
    const worker = openThread(ENTRY, { workerData: order })
    let hear: ((message: FromModel) => void) | undefined
    let closing = false
    let serving = false
    const ended = (reason: string): void => {
      if (closing) return
      closing = true
      reject(new Error(reason))
      died(reason)
    }
    const say = (message: ToModel, transfer: ArrayBuffer[] = []): void => worker.postMessage(message, transfer)
    worker.once('error', (error) => ended(serving || !(error instanceof Error) ? faultOf(error) : error.message))
    worker.once('exit', (code) => ended(`the thread with the model ended with code ${code}`))
    worker.on('message', (message: FromModel) => {
      if (message.say === 'failed') {
        closing = true
        reject(new Error(message.reason))
      } else if (message.say === 'ready') {
        serving = true
        resolve({ languages: message.languages, write, close })
      } else hear?.(message)
    })

    const write: Writer['write'] = (sound, manner, tell, signal) =>
      new Promise((written, broken) => {
        if (signal.aborted) return written(undefined)
        const stop = (): void => say({ say: 'stop' })
        const end = (): void => {
          hear = undefined
          signal.removeEventListener('abort', stop)
        }
        hear = (message) => {
          if (message.say === 'segments') {
            if (!signal.aborted) tell(message.segments)
            return
          }
          end()
          if (message.say === 'broken') broken(new Broken(message.reason))
          else written(message.say === 'done' ? { language: message.language } : undefined)
        }
        signal.addEventListener('abort', stop, { once: true })
        say(
          { say: 'write', blocks: sound.blocks, samples: sound.samples, manner },
          sound.blocks.map((block) => block.buffer as ArrayBuffer),
        )
      })

    const close = (): Promise<unknown> => {
      closing = true
      return worker.terminate()
    }
  })
