import { no } from '../kit/outcome.ts'
import type { Catalog } from './catalog.ts'
import type { Model } from './model.ts'

/** Long: it comes back when somebody has installed something. */
const RETRY_MS = 60_000

/** A model that would be run here, and cannot be; one that an operator's engine serves is not among them. */
const lacksSpeech = (model: Model): boolean => model.type === 'audio' && model.weights !== null

/**
 * The catalogue of a machine on which the engine's optional part for speech is not installed: such models are not listed, and who
 * asks for one by name is told what is missing.
 */
export const withoutSpeech = (catalog: Pick<Catalog, 'resolve' | 'list'>): Pick<Catalog, 'resolve' | 'list'> => ({
  list: () => catalog.list().filter((model) => !lacksSpeech(model)),
  resolve: (name, at) => {
    const model = catalog.resolve(name, at)
    if (!model.ok || !lacksSpeech(model.value)) return model
    const reason = 'speech is not installed on this machine; npm install without --omit=optional brings it'
    return no({ code: 'engine_unavailable', model: model.value.name, reason, retryAfterMs: RETRY_MS })
  },
})
