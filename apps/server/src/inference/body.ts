/** A body in the pieces in which it came. Nobody changes the bytes; a change is a new list of pieces. */
export type Body = { readonly pieces: readonly Buffer[]; readonly bytes: number }

/** Offsets into a body: from `start` up to, but without, `end`. */
export type Span = { readonly start: number; readonly end: number }

/**
 * Up to here a body is joined into one piece, and above it never: joining is a copy, which for a body of a megabyte costs
 * 40 % more CPU than the rest of the relay. It is also how much of a body is parsed, since `JSON.parse` blocks everybody's streams.
 */
export const JOIN_BYTES = 64 * 1024

export const piecesToBody = (pieces: readonly Buffer[], bytes: number): Body =>
  pieces.length > 1 && bytes <= JOIN_BYTES ? { pieces: [Buffer.concat(pieces, bytes)], bytes } : { pieces, bytes }

export const bufferToBody = (buffer: Buffer): Body => ({ pieces: [buffer], bytes: buffer.length })

/** The bytes of a span: a view where it lies within one piece, which is almost always. */
export const slice = (body: Body, span: Span): Buffer => {
  const parts = partsOf(body, span)
  const [only] = parts
  return parts.length === 1 && only !== undefined ? only : Buffer.concat(parts)
}

export type Change = Span & { readonly bytes: Buffer }

/** The body with these changes. They must not overlap; an empty span is an insertion. Nothing is copied. */
export const splice = (body: Body, changes: readonly Change[]): Body => {
  if (changes.length === 0) return body
  const pieces: Buffer[] = []
  let bytes = 0
  const add = (piece: Buffer): void => {
    if (piece.length === 0) return
    pieces.push(piece)
    bytes += piece.length
  }
  let from = 0
  for (const change of changes.toSorted((a, b) => a.start - b.start)) {
    for (const part of partsOf(body, { start: from, end: change.start })) add(part)
    add(change.bytes)
    from = change.end
  }
  for (const part of partsOf(body, { start: from, end: body.bytes })) add(part)
  return piecesToBody(pieces, bytes)
}

/** Whether these bytes occur in the span. An occurrence that is cut by the border of two pieces is found too. */
export const contains = (body: Body, span: Span, needle: Buffer): boolean => {
  const parts = partsOf(body, span)
  if (parts.length === 1) return parts[0]?.includes(needle) === true
  let tail: Buffer = Buffer.alloc(0)
  for (const part of parts) {
    if (part.includes(needle)) return true
    const border = Buffer.concat([tail, part.subarray(0, needle.length - 1)])
    if (border.includes(needle)) return true
    tail = Buffer.concat([tail, part]).subarray(-(needle.length - 1))
  }
  return false
}

const partsOf = (body: Body, span: Span): Buffer[] => {
  const parts: Buffer[] = []
  let offset = 0
  for (const piece of body.pieces) {
    if (offset >= span.end) break
    const start = Math.max(span.start - offset, 0)
    const end = Math.min(span.end - offset, piece.length)
    if (start < end) parts.push(start === 0 && end === piece.length ? piece : piece.subarray(start, end))
    offset += piece.length
  }
  return parts
}
