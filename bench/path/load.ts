import { Client } from 'undici'
import { cpuMicros, residentMb } from '../measure.ts'

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

/** A chat request with a picture of about this many bytes in it; beyond its head the picture is noise. */
export const pictureOf = (model: string, bytes: number): string => {
  const picture = Buffer.alloc(Math.floor((bytes * 3) / 4), 0x5a)
  Buffer.from('89504e470d0a1a0a0000000d4948445200000400000004000802000000', 'hex').copy(picture)
  const url = `data:image/png;base64,${picture.toString('base64')}`
  const content = [
    { type: 'text', text: 'What is this?' },
    { type: 'image_url', image_url: { url } },
  ]
  return JSON.stringify({ model, max_completion_tokens: 400, messages: [{ role: 'user', content }] })
}

const one = (
  client: Client,
  target: Target,
  body: string,
  begun?: () => void,
): Promise<{ latencyMs: number; firstByteMs: number; bytes: number }> =>
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
          if (bytes === 0) {
            firstByteMs = performance.now() - startedAt
            begun?.()
          }
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

export type Streams = { cpuPerChunkMicros: number; kilobytesPerStream: number }

/** So many streams open at once: what each of them weighs while all are open, and what a chunk costs. */
export const openStreams = async (target: Target, body: string, streams: number, chunks: number): Promise<Streams> => {
  const clients = Array.from({ length: streams }, () => new Client(target.origin, { headersTimeout: 120_000, bodyTimeout: 120_000 }))
  const emptyMb = residentMb(target.pid)
  const before = cpuMicros(target.pid)
  let open = 0
  let fullMb = 0
  await Promise.all(
    clients.map((client) =>
      one(client, target, body, () => {
        open += 1
        if (open === streams) fullMb = residentMb(target.pid)
      }),
    ),
  )
  const cpuPerChunkMicros = (cpuMicros(target.pid) - before) / (streams * chunks)
  await Promise.all(clients.map((client) => client.close()))
  return { cpuPerChunkMicros, kilobytesPerStream: ((fullMb - emptyMb) * 1024) / streams }
}

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
