import type { Model } from '../../catalog/model.ts'
import { no, type Outcome, yes } from '../../kit/outcome.ts'
import type { Refusal } from '../../kit/refusal.ts'
import type { Body, Change } from '../body.ts'
import type { Conversation, Pointer } from '../conversation.ts'
import type { Exchange } from '../exchange.ts'
import { base64At, bufferToPacked, toDataUrl, whereOf } from './data-url.ts'
import { MAX_IMAGE_BYTES, readImage } from './images.ts'
import { readSound } from './sound.ts'
import { imageTokens, soundTokens } from './tokens.ts'

/** What a conversation has beside words. */
export type Media = {
  readonly images: number
  /** How much of the body is base64. */
  readonly bytes: number
  /** What it counts for until the engine has counted (data-plane.md 15). */
  readonly tokens: number
  /** The images that are still to be fetched. */
  readonly urls: readonly (Pointer & { readonly url: string })[]
}

/** One request must not make us a crowd at somebody else's door. */
const MAX_FETCHES = 100

const NO_MEDIA: Media = { images: 0, bytes: 0, tokens: 0, urls: [] }

/** What the model makes of the images and sounds; those that are in the body are looked into (data-plane.md 6.3, 6.4). */
export const checkMedia = (body: Body, { images, sounds }: Conversation, model: Model): Outcome<Media> => {
  const [image] = images
  const [sound] = sounds
  if (image === undefined && sound === undefined) return yes(NO_MEDIA)
  const { maxImages } = model.rules
  const field = (pointer: Pointer): string => pointer.field.replace(/\.[a-z_]+$/, '')
  if (image !== undefined && !model.features.vision) return no(invalid(field(image), `the model ${model.name} takes no images`))
  if (sound !== undefined && !model.rules.audioInChat) return no(invalid(field(sound), `the model ${model.name} takes no audio`))
  if (maxImages !== null && images.length > maxImages) {
    return no(invalid('messages', `${images.length} images are too many: the model ${model.name} takes ${maxImages} in a request`))
  }

  let bytes = 0
  let tokens = 0
  const urls: (Pointer & { url: string })[] = []
  for (const pointer of images) {
    const where = whereOf(body, pointer.span)
    if (where.kind === 'other') return no(invalid(pointer.field, 'expected a URL of http or https, or a data URL in base64'))
    if (where.kind === 'web') {
      urls.push({ ...pointer, url: where.url })
      tokens += imageTokens(model.rules, undefined)
      continue
    }
    const read = readImage(where.packed)
    if (!read.ok) return no(invalid(pointer.field, read.refusal))
    bytes += pointer.span.end - pointer.span.start
    tokens += imageTokens(model.rules, read.value)
  }
  if (new Set(urls.map(({ url }) => url)).size > MAX_FETCHES) {
    return no(invalid('messages', `more than ${MAX_FETCHES} images by URL are not fetched for one request`))
  }
  for (const pointer of sounds) {
    const read = readSound(base64At(body, pointer.span), pointer.format)
    if (!read.ok) return no(invalid(pointer.field, read.refusal))
    bytes += pointer.span.end - pointer.span.start
    tokens += soundTokens(read.value.seconds)
  }
  return yes({ images: images.length, bytes, tokens, urls })
}

const invalid = (field: string, reason: string): Refusal => ({ code: 'field_invalid', field, reason })

const FETCH_MS = 10_000 // data-plane.md 6.3
const FETCHES_AT_ONCE = 4
/** All images of a request together; as much as a body may have. */
const MAX_FETCHED_BYTES = 100 * 1024 * 1024

/** Fetches images, a few at a time and each URL once, and puts them into the body as if the client had sent them. */
export const bringImages = async (urls: Media['urls'], exchange: Pick<Exchange, 'fetch'>): Promise<Outcome<readonly Change[]>> => {
  const waiting = [...groupByUrl(urls)]
  const changes: Change[] = []
  let fetchedBytes = 0
  let wrong: Refusal | undefined

  const work = async (): Promise<void> => {
    for (let next = waiting.shift(); next !== undefined && wrong === undefined; next = waiting.shift()) {
      const [url, pointers] = next
      const brought = await bringImage(url, exchange)
      fetchedBytes += brought.ok ? brought.value.length : 0
      const reason = brought.ok ? (fetchedBytes > MAX_FETCHED_BYTES ? 'the images are too large together' : undefined) : brought.refusal
      if (reason !== undefined) wrong ??= invalid(pointers[0]?.field ?? 'messages', reason)
      else if (brought.ok) changes.push(...pointers.map(({ span }) => ({ ...span, bytes: brought.value })))
    }
  }
  await Promise.all(Array.from({ length: FETCHES_AT_ONCE }, work))
  return wrong === undefined ? yes(changes) : no(wrong)
}

const groupByUrl = (urls: Media['urls']): Map<string, Pointer[]> => {
  const places = new Map<string, Pointer[]>()
  for (const { url, ...pointer } of urls) {
    const known = places.get(url)
    if (known === undefined) places.set(url, [pointer])
    else known.push(pointer)
  }
  return places
}

const bringImage = async (url: string, exchange: Pick<Exchange, 'fetch'>): Promise<Outcome<Buffer, string>> => {
  const fetched = await exchange.fetch(url, {
    maxBytes: MAX_IMAGE_BYTES,
    timeMs: FETCH_MS,
    accept: 'image/png, image/jpeg, image/webp, image/gif',
  })
  if (!fetched.ok) return no(`the image could not be fetched: ${fetched.reason}`)
  if (fetched.status !== 200) return no(`the image could not be fetched: its server answered ${fetched.status}`)
  const read = readImage(bufferToPacked(fetched.body))
  return read.ok ? yes(toDataUrl(read.value.type, fetched.body)) : read
}
