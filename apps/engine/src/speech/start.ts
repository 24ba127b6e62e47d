import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { EngineOptions } from '../command-line.ts'
import type { Started } from '../listener.ts'
import type { Log } from '../log.ts'
import { openSpeechServer } from './server.ts'
import { openWriter } from './writer.ts'

const BYTES_PER_MB = 1024 * 1024
/** A thread that loads cannot say how far it is, but it is heard of. */
const SIGN_OF_LIFE_MS = 5_000

/** Weights are copied once while they are prepared. */
const COPIES = 2

const checkMemory = async ({ modelPath, memoryMb }: EngineOptions): Promise<void> => {
  const directory = join(modelPath, 'onnx')
  const files = await readdir(directory).catch(() => [])
  const sizes = await Promise.all(files.map(async (file) => (await stat(join(directory, file))).size))
  const neededMb = Math.ceil((COPIES * sizes.reduce((sum, size) => sum + size, 0)) / BYTES_PER_MB)
  if (neededMb > memoryMb) throw new Error(`The model ${modelPath} needs about ${neededMb} MB of memory, and the limit is ${memoryMb} MB.`)
}

/** Loads the speech model and opens its HTTP surface. A thread that dies takes the process with it, which whoever started it starts again. */
export const startSpeech = async (
  options: EngineOptions,
  log: Log,
  key: string | undefined,
  progress: (done: number) => void,
  died: (reason: string) => void,
): Promise<Started> => {
  await checkMemory(options)
  progress(0)
  const alive = setInterval(() => progress(0), SIGN_OF_LIFE_MS)
  try {
    const writer = await openWriter({ directory: options.modelPath, threads: options.threads }, died)
    const server = openSpeechServer({ options, writer, log }, key)
    return {
      listen: server.listen,
      close: async (limitMs) => {
        await server.close(limitMs)
        await writer.close()
      },
      facts: { languages: writer.languages.length === 0 ? 'one' : writer.languages.length },
    }
  } finally {
    clearInterval(alive)
  }
}
