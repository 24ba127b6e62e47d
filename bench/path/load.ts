import { connect } from 'node:net'

export type Target = {
  readonly port: number
  readonly path: string
  readonly model: string
  /** Beyond what every request has. */
  readonly headers: Readonly<Record<string, string>>
}

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

/** The bytes of a whole request, made once: a load generator that builds requests measures itself. */
const requestOf = (target: Target, body: string): Buffer => {
  const headers = {
    host: `127.0.0.1:${target.port}`,
    'content-type': 'application/json',
    'content-length': String(Buffer.byteLength(body)),
    ...target.headers,
  }
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
  return Buffer.from(`POST ${target.path} HTTP/1.1\r\n${lines.join('')}\r\n${body}`)
}

export type Answer = {
  readonly firstByteMs: number
  readonly lastByteMs: number
  /** Events of a stream, its end among them. */
  readonly events: number
}

const HEAD_END = '\r\n\r\n'
const LAST_CHUNK = Buffer.from('0\r\n\r\n')
const EVENT_END = Buffer.from('\n\n')
const LF = 0x0a

/** A connection with one request on it at a time. By hand, since a client library would cost more than what is measured. */
const openLine = (port: number) => {
  const socket = connect({ port, host: '127.0.0.1', noDelay: true })
  let waiting: { resolve(answer: Answer): void; reject(error: Error): void; begun: (() => void) | undefined } | undefined
  let sentAtMs = 0
  let firstByteMs = 0
  let events = 0
  let afterLf = false
  let head: string | undefined // while it is not whole
  let bytesLeft: number | undefined // of the body; undefined where it comes in chunks
  let tail: Buffer = Buffer.alloc(0)

  const readHead = (chunk: Buffer): Buffer | undefined => {
    head += chunk.toString('latin1')
    const end = (head as string).indexOf(HEAD_END)
    if (end < 0) return undefined
    const read = head as string
    head = undefined
    if (!read.startsWith('HTTP/1.1 200')) throw new Error(`answered ${read.slice(0, 400)}`)
    const length = /\r\ncontent-length: *(\d+)/i.exec(read.slice(0, end + 2))?.[1]
    bytesLeft = length === undefined ? undefined : Number(length)
    return Buffer.from(read.slice(end + HEAD_END.length), 'latin1')
  }

  const count = (body: Buffer): void => {
    if (afterLf && body[0] === LF) events += 1
    for (let at = body.indexOf(EVENT_END); at >= 0; at = body.indexOf(EVENT_END, at + 2)) events += 1
    afterLf = body[body.length - 1] === LF && body[body.length - 2] !== LF
  }

  const take = (chunk: Buffer): void => {
    const body = head === undefined ? chunk : readHead(chunk)
    if (body === undefined || body.length === 0) return
    if (firstByteMs === 0) {
      firstByteMs = performance.now() - sentAtMs
      waiting?.begun?.()
    }
    if (bytesLeft === undefined) {
      count(body)
      tail = body.length >= LAST_CHUNK.length ? body.subarray(-LAST_CHUNK.length) : Buffer.concat([tail, body]).subarray(-LAST_CHUNK.length)
      if (!tail.equals(LAST_CHUNK)) return
    } else {
      bytesLeft -= body.length
      if (bytesLeft > 0) return
    }
    const done = waiting
    waiting = undefined
    done?.resolve({ firstByteMs, lastByteMs: performance.now() - sentAtMs, events })
  }

  const fail = (error: Error): void => {
    waiting?.reject(error)
    waiting = undefined
  }
  socket.on('data', (chunk) => {
    try {
      take(chunk as Buffer)
    } catch (error) {
      fail(error as Error)
    }
  })
  socket.on('error', fail)
  socket.on('close', () => fail(new Error('the connection was closed')))

  return {
    ask: (request: Buffer, begun?: () => void, dueAtMs = performance.now()): Promise<Answer> =>
      new Promise((resolve, reject) => {
        waiting = { resolve, reject, begun }
        sentAtMs = dueAtMs
        firstByteMs = 0
        events = 0
        head = ''
        tail = Buffer.alloc(0)
        socket.write(request)
      }),
    /** Events of the answer that is on its way. */
    heard: () => events,
    close: () => socket.destroy(),
  }
}

/** A closed loop: so many clients, each sending its next request when the last is answered. */
export const closedLoop = async (target: Target, body: string, clients: number, requests: number): Promise<Answer[]> => {
  const request = requestOf(target, body)
  const answers: Answer[] = []
  const lines = Array.from({ length: clients }, () => openLine(target.port))
  let left = requests
  try {
    await Promise.all(
      lines.map(async (line) => {
        while (left > 0) {
          left -= 1
          answers.push(await line.ask(request))
        }
      }),
    )
  } finally {
    left = 0
    for (const line of lines) line.close()
  }
  return answers
}

const TICK_MS = 1
const MAX_LINES = 256

/** An open loop: so many requests a second, whatever comes back. A request that has to wait for a connection is late from when it was due. */
export const openLoop = async (target: Target, body: string, perSecond: number, seconds: number): Promise<Answer[]> => {
  const request = requestOf(target, body)
  const idle: ReturnType<typeof openLine>[] = []
  const all: ReturnType<typeof openLine>[] = []
  const answers: Answer[] = []
  const total = perSecond * seconds
  const startedAtMs = performance.now()
  let sent = 0
  let timer: NodeJS.Timeout | undefined
  await new Promise<void>((resolve, reject) => {
    const send = (): void => {
      while (sent < total) {
        const dueAtMs = startedAtMs + (sent / perSecond) * 1000
        if (dueAtMs > performance.now()) return
        let line = idle.pop()
        if (line === undefined && all.length < MAX_LINES) {
          line = openLine(target.port)
          all.push(line)
        }
        if (line === undefined) return
        const used = line
        sent += 1
        used.ask(request, undefined, dueAtMs).then((answer) => {
          idle.push(used)
          answers.push(answer)
          if (answers.length === total) resolve()
        }, reject)
      }
    }
    timer = setInterval(send, TICK_MS)
  }).finally(() => {
    clearInterval(timer)
    for (const line of all) line.close()
  })
  return answers
}

/** Streams that run side by side: how many events of all of them have come by now, and how many have ended. */
export type Running = { heard(): number; ended(): number }

/** So many streams that run side by side; `look` is called when all of them are open. */
export const openStreams = async <Seen>(
  target: Target,
  body: string,
  streams: number,
  look: (running: Running) => Promise<Seen>,
): Promise<{ answers: Answer[]; seen: Seen }> => {
  const request = requestOf(target, body)
  const lines = Array.from({ length: streams }, () => openLine(target.port))
  let [open, ended] = [0, 0]
  const running: Running = { heard: () => lines.reduce((sum, line) => sum + line.heard(), 0), ended: () => ended }
  try {
    const asked: Promise<Answer>[] = []
    const full = new Promise<void>((resolve) => {
      for (const line of lines) {
        const begun = (): void => {
          open += 1
          if (open === streams) resolve()
        }
        asked.push(line.ask(request, begun).finally(() => (ended += 1)))
      }
    })
    // Whichever of them fails first, none is left alone with its failure.
    const [answers, seen] = await Promise.all([Promise.all(asked), full.then(() => look(running))])
    return { answers, seen }
  } finally {
    for (const line of lines) line.close()
  }
}
