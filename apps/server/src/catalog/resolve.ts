import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { Model } from './model.ts'

/** The model that answers for a name, or a refusal. */
export type Resolve = (name: string) => Outcome<Model>

/**
 * A model at its end of life sends its callers on to its successor, and that one to its own, since successors retire too
 * (serverless-platform.md 8.3). Vectors of another model would be incompatible, so embedding models send nobody on. Whatever
 * ends nowhere, in a circle included, is answered like a name that was never there, and with the name that was asked for.
 */
export const resolveWith =
  (find: (name: string) => Model | undefined): Resolve =>
  (name) => {
    const passed = new Set<string>()
    let model = find(name)
    while (model?.status === 'eol' && model.successor !== null && model.type !== 'embedding' && !passed.has(model.name)) {
      passed.add(model.name)
      model = find(model.successor)
    }
    return model === undefined || model.status === 'eol' ? no({ code: 'model_unknown', model: name }) : yes(model)
  }
