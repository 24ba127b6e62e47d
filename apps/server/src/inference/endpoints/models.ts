import type { Model as WireModel } from '@parvis/wire/openai/models'
import type { Model } from '../../catalog/model.ts'
import type { Authenticate } from '../../iam/authenticate.ts'
import { bufferToBody } from '../body.ts'
import type { Exchange } from '../exchange.ts'

/** What the two reading endpoints lean on; no engine takes part. */
export type ModelRooms = { authenticate: Authenticate; models(): readonly Model[] }

/** `GET /v1/models` (data-plane.md 5.1): all types in one list, without those that have reached their end (5.2). */
export const listModels =
  (rooms: ModelRooms) =>
  (exchange: Exchange): void => {
    const caller = rooms.authenticate(exchange.authorization, exchange.projectId, exchange)
    if (!caller.ok) return exchange.refuse(caller.refusal)
    exchange.answer(200, toBody({ object: 'list', data: listed(rooms).map(modelToWire) }))
  }

/** `GET /v1/models/{id}`: an unknown one is 404, as OpenAI has it; 422 is for calls. */
export const readModel =
  (rooms: ModelRooms, name: string) =>
  (exchange: Exchange): void => {
    const caller = rooms.authenticate(exchange.authorization, exchange.projectId, exchange)
    if (!caller.ok) return exchange.refuse(caller.refusal)
    const model = listed(rooms).find((candidate) => candidate.name === name)
    if (model === undefined) return exchange.refuse({ code: 'model_not_listed', model: name })
    exchange.answer(200, toBody(modelToWire(model)))
  }

const listed = (rooms: ModelRooms): readonly Model[] => rooms.models().filter((model) => model.status !== 'eol')

const MS = 1000

const modelToWire = (model: Model): WireModel => ({
  id: model.name,
  object: 'model',
  created: Math.floor(model.createdAt / MS),
  owned_by: model.ownedBy,
})

const toBody = (value: unknown) => bufferToBody(Buffer.from(JSON.stringify(value)))
