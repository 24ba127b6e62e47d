import { no, type Outcome, yes } from '../../kit/outcome.ts'
import type { Packed } from './data-url.ts'
import { readImage } from './images.ts'

/** What Mistral's own service takes. */
export const MAX_DOCUMENT_BYTES = 50 * 1024 * 1024
/** Readers look for the mark of a PDF in so many bytes: some writers put something before it. */
const PDF_LOOK_BYTES = 1024
export const PDF = 'application/pdf'

/** Whether it is a document that can be read, by its bytes: a PDF or an image (data-plane.md 12). */
export const readDocument = (bytes: Packed): Outcome<{ readonly type: string }, string> => {
  if (bytes.length > MAX_DOCUMENT_BYTES) return no(`the document is larger than ${MAX_DOCUMENT_BYTES / 2 ** 20} MB`)
  if (bytes.at(0, PDF_LOOK_BYTES).includes('%PDF-')) return yes({ type: PDF })
  const image = readImage(bytes)
  return image.ok || image.refusal !== NO_IMAGE ? image : no('it is neither a PDF nor a PNG, JPEG, WEBP or GIF image')
}

const NO_IMAGE = 'it is not a PNG, JPEG, WEBP or GIF image'
