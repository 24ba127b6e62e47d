import type { Instant } from '../kit/clock.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { Model } from './model.ts'

/** The model that answers for a name, with the price and the status that are in force at that instant, or a refusal. */
export type Resolve = (name: string, at: Instant) => Outcome<Model>

/**
 * A model at its end of life sends its callers on to its successor, and that one to its own, since successors retire too
 * (serverless-platform.md 8.3). Vectors of another model would be incompatible, so embedding models send nobody on. Whatever
 * ends nowhere, in a circle included, is answered like a name that was never there, and with the name that was asked for.
 */
export const resolveWith =
  (find: (name: string, at: Instant) => Model | undefined): Resolve =>
  (name, at) => {
    const passed = new Set<string>()
    let model = find(name, at)
    while (model?.status === 'eol' && model.successor !== null && model.type !== 'embedding' && !passed.has(model.name)) {
      passed.add(model.name)
      model = find(model.successor, at)
    }
    return model === undefined || model.status === 'eol' ? no({ code: 'model_unknown', model: name }) : yes(model)
  }
