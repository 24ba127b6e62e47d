import { Busboy } from '@fastify/busboy'

/** A form as it was sent: text fields by name, each in the order of its values, and at most one file. */
export type Form = {
  readonly fields: ReadonlyMap<string, readonly string[]>
  /** The part of the name that was asked for, in the pieces in which it came. Its own name and type are what the sender believes. */
  readonly file: { readonly pieces: readonly Uint8Array[]; readonly bytes: number } | undefined
}

export type FormLimits = {
  /** The name of the part that is a file, whether or not the sender calls it one. */
  readonly fileField: string
  readonly fileBytes: number
  readonly fieldBytes: number
  readonly fields: number
}

export type FormProblem =
  | { readonly problem: 'broken'; readonly reason: string }
  | { readonly problem: 'file_too_large' }
  | { readonly problem: 'field_too_large'; readonly field: string }
  | { readonly problem: 'too_many' }

export type FormOutcome = { readonly ok: true; readonly value: Form } | ({ readonly ok: false } & FormProblem)

/** Of one part. A file's name and type fit many times over. */
const MAX_HEADER_BYTES = 8 * 1024
const MAX_HEADERS = 16

export const isMultipart = (contentType: string | undefined): contentType is string => /^multipart\/form-data\s*;/i.test(contentType ?? '')

/**
 * Reads a `multipart/form-data` body (RFC 7578). The pieces may be cut anywhere. Nothing beyond a limit is kept: the first one that
 * is passed ends the reading.
 */
export const readForm = (contentType: string, pieces: Iterable<Uint8Array>, limits: FormLimits): Promise<FormOutcome> =>
  new Promise((resolve) => {
    const fields = new Map<string, string[]>()
    let file: { pieces: Uint8Array[]; bytes: number } | undefined
    let settled = false
    const settle = (outcome: FormOutcome): void => {
      settled = true
      resolve(outcome)
    }
    const fail = (problem: FormProblem): void => settle({ ok: false, ...problem })
    const broken = (error: unknown): void => fail({ problem: 'broken', reason: error instanceof Error ? error.message : String(error) })

    let reader: ReturnType<typeof open>
    try {
      reader = open(contentType, limits)
    } catch (error) {
      return broken(error)
    }
    reader.on('field', (name: string | undefined, value, _nameTruncated, truncated) => {
      if (name === undefined) return // a part without a name is nothing that anybody could have asked for
      if (truncated) return fail({ problem: 'field_too_large', field: name.slice(0, 100) })
      fields.set(name, [...(fields.get(name) ?? []), value])
    })
    reader.on('file', (_name, stream) => {
      const taken: { pieces: Uint8Array[]; bytes: number } = { pieces: [], bytes: 0 }
      file = taken
      stream.on('error', broken)
      stream.on('limit', () => fail({ problem: 'file_too_large' }))
      stream.on('data', (piece: Uint8Array) => {
        taken.pieces.push(piece)
        taken.bytes += piece.length
      })
    })
    for (const event of ['partsLimit', 'fieldsLimit', 'filesLimit']) reader.on(event, () => fail({ problem: 'too_many' }))
    reader.on('error', broken)
    reader.on('finish', () => settle({ ok: true, value: { fields, file } }))

    const write = async (): Promise<void> => {
      for (const piece of pieces) {
        if (settled) return
        if (!reader.write(piece)) await new Promise((drained) => void reader.once('drain', drained).once('error', drained))
      }
      if (!settled) reader.end()
    }
    write().catch(broken)
  })

const open = (contentType: string, limits: FormLimits) =>
  new Busboy({
    headers: { 'content-type': contentType },
    isPartAFile: (name) => name === limits.fileField,
    limits: {
      fileSize: limits.fileBytes,
      fieldSize: limits.fieldBytes,
      files: 1,
      fields: limits.fields,
      parts: limits.fields + 1,
      headerPairs: MAX_HEADERS,
      headerSize: MAX_HEADER_BYTES,
    },
  })

/** A form to send, in pieces; the file is not copied. The boundary must not occur in any of them, so take it from chance. */
export const writeForm = (
  boundary: string,
  fields: readonly (readonly [name: string, value: string])[],
  file: { readonly field: string; readonly name: string; readonly pieces: readonly Uint8Array[] },
): Uint8Array[] => {
  const text = fields.map(([name, value]) => `--${boundary}\r\ncontent-disposition: form-data; name="${name}"\r\n\r\n${value}\r\n`).join('')
  const head = `--${boundary}\r\ncontent-disposition: form-data; name="${file.field}"; filename="${file.name}"\r\ncontent-type: application/octet-stream\r\n\r\n`
  return [Buffer.from(text + head), ...file.pieces, Buffer.from(`\r\n--${boundary}--\r\n`)]
}
