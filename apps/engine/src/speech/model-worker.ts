import { parentPort, workerData } from 'node:worker_threads'
import { faultOf } from '../log.ts'
import { transcribe } from './transcribe.ts'
import { loadWhisper, type Manner, type Segment, type Whisper } from './whisper.ts'

/** The beginning of the thread that holds the model: ONNX Runtime computes without a pause, and `/health` must be answered meanwhile. */
export type ModelOrder = { readonly directory: string; readonly threads: number }

export type ToModel =
  | { readonly say: 'write'; readonly blocks: readonly Float32Array[]; readonly samples: number; readonly manner: Manner }
  | { readonly say: 'stop' }

export type FromModel =
  | { readonly say: 'ready'; readonly languages: readonly string[] }
  | { readonly say: 'failed'; readonly reason: string }
  | { readonly say: 'segments'; readonly segments: readonly Segment[] }
  | { readonly say: 'done'; readonly language: string | undefined }
  | { readonly say: 'stopped' }
  | { readonly say: 'broken'; readonly reason: string }

const { directory, threads } = workerData as ModelOrder
const tell = (message: FromModel): void => parentPort?.postMessage(message)
const reasonOf = (error: unknown): string => (error instanceof Error ? error.message : String(error))

let stopped = false

const write = async (whisper: Whisper, order: Extract<ToModel, { say: 'write' }>): Promise<void> => {
  stopped = false
  try {
    const written = await transcribe(
      whisper,
      order,
      order.manner,
      (segments) => tell({ say: 'segments', segments }),
      () => stopped,
    )
    tell(written === undefined ? { say: 'stopped' } : { say: 'done', language: written.language })
  } catch (error) {
    tell({ say: 'broken', reason: faultOf(error) })
  }
}

try {
  const whisper = await loadWhisper(directory, threads)
  parentPort?.on('message', (message: ToModel) => {
    if (message.say === 'stop') stopped = true
    else void write(whisper, message)
  })
  tell({ say: 'ready', languages: whisper.languages })
} catch (error) {
  tell({ say: 'failed', reason: reasonOf(error) })
}
