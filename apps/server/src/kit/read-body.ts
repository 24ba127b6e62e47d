import type { IncomingMessage } from 'node:http'

/** Why there is no body: nothing that is our fault. */
export type Unread = 'too_large' | 'late' | 'left' | 'crowded'

/** Where bodies are held: false when there is no room for so many bytes more. */
export type Hold = (bytes: number) => boolean

const EMPTY = Buffer.alloc(0)

/**
 * The whole of a body, bounded in bytes and in time; an error with the reason as `unread` where there is none. It is copied into one
 * buffer that grows: who sends single bytes must not make us keep a piece for each of them, which takes a hundred times as much.
 */
export const readBytes = (
  request: IncomingMessage,
  { limitMs, maxBytes, hold }: { readonly limitMs: number; readonly maxBytes: number; readonly hold?: Hold | undefined },
): Promise<Buffer> =>
  new Promise((resolve, reject) => {
    let whole = EMPTY
    let bytes = 0
    const stop = (): void => {
      clearTimeout(timer)
      request.off('data', take).off('end', end).off('close', left)
    }
    const fail = (unread: Unread): void => {
      stop()
      whole = EMPTY
      reject(Object.assign(new Error(`the body is ${unread}`), { unread }))
    }
    const take = (piece: Buffer): void => {
      const needed = bytes + piece.length
      if (needed > maxBytes) return fail('too_large')
      if (needed > whole.length) {
        const size = Math.min(maxBytes, Math.max(needed, 2 * whole.length))
        if (hold !== undefined && !hold(size - whole.length)) return fail('crowded')
        const larger = Buffer.allocUnsafeSlow(size)
        whole.copy(larger, 0, 0, bytes)
        whole = larger
      }
      piece.copy(whole, bytes)
      bytes = needed
    }
    const end = (): void => {
      stop()
      resolve(whole.subarray(0, bytes))
    }
    const left = (): void => fail('left')
    const timer = setTimeout(() => fail('late'), limitMs)
    request.on('error', () => {}) // `close` follows
    if (request.destroyed) return left()
    if (Number(request.headers['content-length'] ?? 0) > maxBytes) return fail('too_large')
    request.on('data', take).on('end', end).on('close', left)
  })
