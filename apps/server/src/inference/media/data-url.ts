import { type Body, type Span, slice } from '../body.ts'

/** Base64 in a body, decoded only as far as somebody looks: all of a large image would cost more than relaying it. */
export type Packed = {
  /** How many bytes it is, decoded. */
  readonly length: number
  at(start: number, bytes: number): Buffer
}

const BACKSLASH = 0x5c
const QUOTE_BYTES = 1
const MAX_PREFIX_BYTES = 256
const LOOK_BYTES = 4_096

/** The text of a JSON string. */
export const textAt = (body: Body, span: Span): string => JSON.parse(slice(body, span).toString()) as string

/** The base64 in a JSON string; `span` is what stands between its quotes, or the rest of it. */
const packedAt = (body: Body, span: Span): Packed => {
  const ends = [
    { ...span, end: Math.min(span.start + LOOK_BYTES, span.end) },
    { ...span, start: Math.max(span.start, span.end - 2) },
  ]
  const [first, last] = ends.map((end) => slice(body, end))
  // Some languages write a slash as `\/`. Then the places of bytes cannot be computed, and all of it is decoded.
  const all = (): Buffer => Buffer.from(JSON.parse(`"${slice(body, span).toString()}"`) as string, 'base64')
  if (first?.includes(BACKSLASH) === true) return bufferToPacked(all())

  const padding = last?.toString('latin1').replaceAll(/[^=]/g, '').length ?? 0
  return {
    length: Math.floor(((span.end - span.start - padding) * 3) / 4),
    at(start, bytes) {
      const group = Math.floor(start / 3)
      const from = Math.min(span.start + group * 4, span.end)
      const text = slice(body, { start: from, end: Math.min(from + Math.ceil((start - group * 3 + bytes) / 3) * 4, span.end) })
      if (text.includes(BACKSLASH)) return bufferToPacked(all()).at(start, bytes)
      return bufferToPacked(Buffer.from(text.toString('latin1'), 'base64')).at(start - group * 3, bytes)
    },
  }
}

/** The same of bytes that were fetched. */
export const bufferToPacked = (buffer: Buffer): Packed => ({
  length: buffer.length,
  at: (start, bytes) => buffer.subarray(start, start + bytes),
})

/** The base64 in a JSON string that is nothing else. */
export const base64At = (body: Body, span: Span): Packed => packedAt(body, { start: span.start + QUOTE_BYTES, end: span.end - QUOTE_BYTES })

/** What a JSON string with a URL in it points at, by its first characters. One with a megabyte in it is not decoded for that. */
export type Where =
  | { readonly kind: 'web'; readonly url: string }
  | { readonly kind: 'data'; readonly packed: Packed }
  | { readonly kind: 'other' }

export const whereOf = (body: Body, span: Span): Where => {
  const start = slice(body, { start: span.start + QUOTE_BYTES, end: Math.min(span.end, span.start + MAX_PREFIX_BYTES) }).toString('latin1')
  const prefix = /^data:[a-z0-9.+\-/\\;=]*;base64,/i.exec(start)
  if (prefix !== null) {
    return { kind: 'data', packed: packedAt(body, { start: span.start + QUOTE_BYTES + prefix[0].length, end: span.end - QUOTE_BYTES }) }
  }
  return /^https?:/i.test(start) ? { kind: 'web', url: textAt(body, span) } : { kind: 'other' }
}

/** As a JSON string. */
export const toDataUrl = (type: string, bytes: Buffer): Buffer => Buffer.from(`"data:${type};base64,${bytes.toString('base64')}"`, 'latin1')
