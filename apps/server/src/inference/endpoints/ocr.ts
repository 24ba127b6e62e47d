import { OcrUsage } from '@parvis/wire/mistral/ocr'
import { no, type Outcome, yes } from '../../kit/outcome.ts'
import type { Refusal } from '../../kit/refusal.ts'
import type { Counts } from '../../usage/event.ts'
import { NO_COUNTS } from '../answer.ts'
import { type Body, type Change, JOIN_BYTES, type Span, slice, splice } from '../body.ts'
import type { Pointer } from '../conversation.ts'
import type { Exchange } from '../exchange.ts'
import { bufferToPacked, toDataUrl, whereOf } from '../media/data-url.ts'
import { MAX_DOCUMENT_BYTES, PDF, readDocument } from '../media/documents.ts'
import { read, scan, watch } from '../scan.ts'
import { type Endpoint, mismatch, parse, type Reading, type Request, readBody } from './endpoint.ts'

const WATCHED = watch(['model', 'document', 'pages'])
const FETCH_MS = 30_000
/** What Mistral's own service reads of one document; a budget reserves so much where nobody says less. */
const MOST_PAGES = 1_000

/**
 * `POST /v1/ocr`, in Mistral's shape (data-plane.md 12): passed through to an engine that speaks it. The document is fetched by us and
 * reaches the engine as data, so that an engine never fetches.
 */
export const ocr: Endpoint = {
  name: 'ocr',
  path: '/ocr',
  enginePath: '/v1/ocr',

  read: (body) => readBody(body, WATCHED),

  check(reading, model) {
    if (model.type !== 'ocr') return no(mismatch(ocr, model))
    const pointer = documentOf(reading)
    if (!pointer.ok) return pointer
    const { field, span } = pointer.value
    const where = whereOf(reading.body, span)
    if (where.kind === 'other') return no(invalid(field, 'expected a URL of http or https, or a data URL in base64'))

    const asked = pagesAsked(reading)
    const request = (pages: number, brought: readonly Change[]): Request => ({
      enginePath: ocr.enginePath,
      stream: false,
      wantsUsage: false,
      estimate: { inputTokens: 0, outputTokens: 0, pages },
      bytesFor: (remoteModel) => splice(reading.body, [...nameFor(reading, remoteModel), ...brought]),
      answerKey: 'pages',
      countsOf: pagesOf,
    })
    if (where.kind === 'data') {
      const document = readDocument(where.packed)
      if (!document.ok) return no(invalid(field, document.refusal))
      return yes(request(document.value.type === PDF ? asked : 1, []))
    }
    return yes({
      ...request(asked, []),
      async complete(exchange) {
        const brought = await bring(where.url, exchange)
        return brought.ok ? yes(request(asked, [{ ...span, bytes: brought.value }])) : no(invalid(field, brought.refusal))
      },
    })
  },
}

const invalid = (field: string, reason: string): Refusal => ({ code: 'field_invalid', field, reason })

const nameFor = (reading: Reading, remoteModel: string): Change[] => {
  const span = reading.spans.get('model')
  return span === undefined || remoteModel === reading.model ? [] : [{ ...span, bytes: Buffer.from(JSON.stringify(remoteModel)) }]
}

/** The most that will be read: as many as the request names, by number; who writes them in another way may get all there are. */
const pagesAsked = ({ spans, body }: Reading): number => {
  const span = spans.get('pages')
  if (span === undefined || span.end - span.start > JOIN_BYTES) return MOST_PAGES
  const named = parse(slice(body, span))
  if (!named.ok || !Array.isArray(named.value) || named.value.length === 0) return MOST_PAGES
  return named.value.every(Number.isInteger) ? Math.min(named.value.length, MOST_PAGES) : MOST_PAGES
}

const QUOTE = 0x22
const OPEN_BRACE = 0x7b

/** Where the URL of the document stands. */
const documentOf = (reading: Reading): Outcome<Pointer> => {
  const document = reading.spans.get('document')
  if (document === undefined) return no(invalid('document', 'expected an object with a document_url or an image_url'))
  const found: Pointer[] = []
  let wrong: Refusal | undefined
  const walked = read(reading.body, document.start, (cursor) => {
    const take = (field: string): void => {
      const isText = cursor.peek() === QUOTE
      const span: Span = cursor.take()
      if (isText) found.push({ field, span })
      else wrong ??= invalid(field, 'expected a string')
    }
    if (cursor.peek() !== OPEN_BRACE) {
      wrong = invalid('document', 'expected an object')
      return
    }
    for (let place = 0; cursor.member(place); place += 1) {
      const { key } = cursor
      if (key === 'document_url') take('document.document_url')
      else if (key === 'image_url' && cursor.peek() !== OPEN_BRACE) take('document.image_url')
      else if (key === 'image_url') {
        for (let inner = 0; cursor.member(inner); inner += 1) {
          if (cursor.key === 'url') take('document.image_url.url')
          else cursor.skip()
        }
      } else if (key === 'type') {
        const type = cursor.word()
        if (type !== 'document_url' && type !== 'image_url') wrong ??= invalid('document.type', 'expected "document_url" or "image_url"')
      } else cursor.skip()
    }
  })
  if (!walked.ok) return no({ code: 'body_not_json', reason: walked.refusal })
  if (wrong !== undefined) return no(wrong)
  const [only] = found
  // Two, of one name or of both, would leave it to the engine which of them it fetches.
  if (only === undefined || found.length > 1) return no(invalid('document', 'expected one document_url or one image_url'))
  return yes(only)
}

const bring = async (url: string, exchange: Pick<Exchange, 'fetch'>): Promise<Outcome<Buffer, string>> => {
  const accept = `${PDF}, image/png, image/jpeg, image/webp, image/gif`
  const fetched = await exchange.fetch(url, { maxBytes: MAX_DOCUMENT_BYTES, timeMs: FETCH_MS, accept })
  if (!fetched.ok) return no(`the document could not be fetched: ${fetched.reason}`)
  if (fetched.status !== 200) return no(`the document could not be fetched: its server answered ${fetched.status}`)
  const document = readDocument(bufferToPacked(fetched.body))
  return document.ok ? yes(toDataUrl(document.value.type, fetched.body)) : document
}

const USAGE = watch([], ['usage_info', 'pages'])

/** Pages are what is charged: as the engine says, and else as many as it gave. */
const pagesOf = (answer: Body): Counts | undefined => {
  const scanned = scan(answer, USAGE)
  if (!scanned.ok) return undefined
  const usage = scanned.value.spans.get('usage_info')
  const told = usage && parse(slice(answer, usage))
  const counted = OcrUsage.safeParse(told?.ok === true ? told.value : undefined)
  if (counted.success) return { ...NO_COUNTS, pages: counted.data.pages_processed }
  const pages = scanned.value.spans.get('pages')
  if (pages === undefined) return undefined
  const walked = read(answer, pages.start, (cursor) => {
    let count = 0
    for (; cursor.element(count); count += 1) cursor.skip()
    return count
  })
  return walked.ok ? { ...NO_COUNTS, pages: walked.value } : undefined
}
