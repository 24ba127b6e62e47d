import { z } from 'zod'

/** The one error shape that we send (data-plane.md 3.1): `code` is the HTTP status, as a number. */
export const ErrorBody = z.looseObject({
  error: z.looseObject({
    message: z.string(),
    type: z.string(),
    param: z.string().nullable(),
    code: z.number(),
  }),
})
export type ErrorBody = z.infer<typeof ErrorBody>

const Reported = z.looseObject({
  message: z.string().min(1),
  type: z.string().nullish(),
  param: z.string().nullish(),
  code: z.union([z.string(), z.number()]).nullish(),
})

/** An engine's error: nested as OpenAI has it, or the flat legacy form with `object: "error"`. */
export const EngineError = z.union([
  z.looseObject({ error: Reported }).transform((body) => body.error),
  Reported.extend({ object: z.literal('error') }).transform((body): z.infer<typeof Reported> => body),
])
export type EngineError = z.infer<typeof EngineError>
