import { z } from 'zod'

/** `POST /v1/ocr` (data-plane.md 12): what we look at; all else passes through. */
export const OcrRequest = z.looseObject({
  model: z.string().min(1),
  document: z.union([
    z.looseObject({ type: z.literal('document_url'), document_url: z.string().min(1) }),
    z.looseObject({
      type: z.literal('image_url'),
      image_url: z.union([z.string().min(1), z.looseObject({ url: z.string().min(1) })]),
    }),
  ]),
})
export const OcrAnswer = z.looseObject({ pages: z.array(z.looseObject({})) })

/** What is read of an answer of `POST /v1/ocr`: how many pages it counts (data-plane.md 12). All else passes through. */
export const OcrUsage = z.looseObject({ pages_processed: z.int().nonnegative() })
