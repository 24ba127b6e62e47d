import { z } from 'zod'

/** One entry of `GET /v1/models` (data-plane.md 5.1). */
export const Model = z.looseObject({
  id: z.string(),
  object: z.literal('model'),
  created: z.int(),
  owned_by: z.string(),
})
export type Model = z.infer<typeof Model>

export const ModelList = z.looseObject({ object: z.literal('list'), data: z.array(Model) })
export type ModelList = z.infer<typeof ModelList>

/** What an engine of anybody's make lists: the id is all that we need, and all that every engine gives. */
export const EngineModelList = z.looseObject({ data: z.array(z.looseObject({ id: z.string().min(1) })) })
export type EngineModelList = z.infer<typeof EngineModelList>
