import { Client } from 'undici'
import { cpuMicros } from '../measure.ts'

export type Target = { origin: string; path: string; model: string; key: string | undefined; pid: number }
export type Load = { latencyMs: number[]; firstByteMs: number[]; cpuPerRequestMicros: number; bytes: number }

const FILLER = 'The quick brown fox jumps over the lazy dog. '
/** A chat request of about this many bytes. */
export const bodyOf = (model: string, bytes: number, stream: boolean): string =>
  JSON.stringify({
    model,
    stream,
    max_completion_tokens: 400,
    messages: [{ role: 'user', content: FILLER.repeat(Math.ceil(bytes / FILLER.length)).slice(0, bytes) }],
  })

const one = (client: Client, target: Target, body: string): Promise<{ latencyMs: number; firstByteMs: number; bytes: number }> =>
  new Promise((resolve, reject) => {
    const startedAt = performance.now()
    let firstByteMs = 0
    let bytes = 0
    let status = 0
    client.dispatch(
      {
        method: 'POST',
        path: target.path,
        headers: { 'content-type': 'application/json', ...(target.key === undefined ? {} : { authorization: `Bearer ${target.key}` }) },
        body,
      },
      {
        onRequestStart: () => undefined,
        onResponseStart(_controller, code) {
          status = code
        },
        onResponseData(_controller, chunk) {
          if (bytes === 0) firstByteMs = performance.now() - startedAt
          bytes += chunk.length
        },
        onResponseEnd() {
          if (status === 200) resolve({ latencyMs: performance.now() - startedAt, firstByteMs, bytes })
          else reject(new Error(`status ${status} from ${target.origin}`))
        },
        onResponseError(_controller, error) {
          reject(error)
        },
      },
    )
  })

/** A closed loop: so many clients, each sending its next request when the last is answered. */
export const closedLoop = async (target: Target, body: string, clients: number, requests: number): Promise<Load> => {
  const latencyMs: number[] = []
  const firstByteMs: number[] = []
  let bytes = 0
  let left = requests
  const before = cpuMicros(target.pid)
  await Promise.all(
    Array.from({ length: clients }, async () => {
      const client = new Client(target.origin, { headersTimeout: 60_000, bodyTimeout: 60_000 })
      while (left > 0) {
        left -= 1
        const answer = await one(client, target, body)
        latencyMs.push(answer.latencyMs)
        firstByteMs.push(answer.firstByteMs)
        bytes += answer.bytes
      }
      await client.close()
    }),
  )
  return { latencyMs, firstByteMs, cpuPerRequestMicros: (cpuMicros(target.pid) - before) / requests, bytes }
}
