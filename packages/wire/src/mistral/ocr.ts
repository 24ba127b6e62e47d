import { z } from 'zod'

/** What is read of an answer of `POST /v1/ocr`: how many pages it counts (data-plane.md 12). All else passes through. */
export const OcrUsage = z.looseObject({ pages_processed: z.int().nonnegative() })
