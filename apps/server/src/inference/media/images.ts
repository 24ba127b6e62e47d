import { imageSize } from 'image-size'
import { no, type Outcome, yes } from '../../kit/outcome.ts'
import type { Packed } from './data-url.ts'

/** What the bytes of an image say of it; its name and its declared type are not asked (data-plane.md 6.3). */
export type Image = { readonly type: ImageType; readonly width: number; readonly height: number }
type ImageType = 'image/png' | 'image/jpeg' | 'image/webp' | 'image/gif'

export const MAX_IMAGE_BYTES = 20 * 1024 * 1024
const MAX_PIXELS = 32_000_000
/** The size of nearly every image stands this early; that of a photograph with a long preface, later. */
const HEADS_BYTES = [32 * 1024, 128 * 1024, 512 * 1024]

/** What it is, or why it is not taken: four formats, no animation, bounded in bytes and in pixels. */
export const readImage = (bytes: Packed): Outcome<Image, string> => {
  if (bytes.length > MAX_IMAGE_BYTES) return no(`the image is larger than ${MAX_IMAGE_BYTES / 2 ** 20} MB`)
  const type = typeOf(bytes.at(0, 16))
  if (type === undefined) return no('it is not a PNG, JPEG, WEBP or GIF image')
  const size = sizeOf(bytes)
  if (size === undefined) return no('the size of the image cannot be read')
  if (size.width * size.height > MAX_PIXELS)
    return no(`the image has ${size.width} × ${size.height} pixels, and ${MAX_PIXELS} are the most`)
  if (type === 'image/gif' && isAnimated(bytes.at(0, bytes.length))) return no('animated GIF images are not supported')
  return yes({ type, ...size })
}

const typeOf = (head: Buffer): ImageType | undefined => {
  const text = head.toString('latin1')
  if (text.startsWith('\x89PNG\r\n\x1a\n')) return 'image/png'
  if (text.startsWith('\xff\xd8\xff')) return 'image/jpeg'
  if (text.startsWith('GIF87a') || text.startsWith('GIF89a')) return 'image/gif'
  return text.startsWith('RIFF') && text.slice(8, 12) === 'WEBP' ? 'image/webp' : undefined
}

const sizeOf = (bytes: Packed): { width: number; height: number } | undefined => {
  for (const head of HEADS_BYTES) {
    try {
      const { width, height, orientation = 1 } = imageSize(bytes.at(0, head))
      // A camera held sideways: what is seen has the sides of the file the other way round.
      const seen = orientation >= 5 ? { width: height, height: width } : { width, height }
      if (width > 0 && height > 0) return seen
    } catch {
      // Not in this much of it, or not at all.
    }
    if (head >= bytes.length) return undefined
  }
  return undefined
}

const IMAGE_BLOCK = 0x2c
const EXTENSION_BLOCK = 0x21
const HEADER_BYTES = 13

/** Whether a second picture follows the first. Walks over the blocks, each of which says its length. */
const isAnimated = (gif: Buffer): boolean => {
  const paletteBytes = (flags: number): number => ((flags & 0x80) === 0 ? 0 : 3 << ((flags & 7) + 1))
  let at = HEADER_BYTES + paletteBytes(gif[10] ?? 0)
  let pictures = 0
  const skipBlocks = (): void => {
    for (let length = gif[at]; length !== undefined && length !== 0; length = gif[at]) at += 1 + length
    at += 1
  }
  while (at < gif.length) {
    if (gif[at] === IMAGE_BLOCK) {
      pictures += 1
      if (pictures > 1) return true
      at += 10 + paletteBytes(gif[at + 9] ?? 0) + 1 // its descriptor, its own palette, the width of its codes
      skipBlocks()
    } else if (gif[at] === EXTENSION_BLOCK) {
      at += 2
      skipBlocks()
    } else return false // the end, or something that no reader goes beyond
  }
  return false
}
