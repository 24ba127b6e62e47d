import { unixSeconds } from '../clock.ts'
import { embed, readInputs } from '../embed.ts'
import type { Engine, Exchange } from '../exchange.ts'
import { fieldInvalid, no, type Outcome, yes } from '../refusal.ts'
import { EmbeddingRequest, readBody } from '../schema.ts'
import { normalize, vectorToBase64 } from '../vectors.ts'

/** How long the vectors shall be: all of it, or a length that the model was trained to be cut to. */
const readDimensions = (asked: number | undefined, native: number, matryoshka: readonly number[]): Outcome<number> => {
  if (asked === undefined || asked === native) return yes(native)
  const allowed = matryoshka.filter((length) => length < native)
  if (allowed.includes(asked)) return yes(asked)
  const lengths = [...allowed, native].join(', ')
  return no(fieldInvalid('dimensions', `this model's vectors can have ${lengths} dimensions, not ${asked}`))
}

const inputsOf = (input: EmbeddingRequest['input']): (string | number[])[] => {
  if (typeof input === 'string') return [input]
  return typeof input[0] === 'number' ? [input as number[]] : (input as (string | number[])[])
}

/** `POST /v1/embeddings` (data-plane.md 9). */
export const embeddings = async (engine: Engine, exchange: Exchange): Promise<void> => {
  const { loaded, options, counters } = engine
  if (loaded.serves.type !== 'embedding') throw new Error('the embeddings route needs an embedding model')
  const model = loaded.serves
  const request = readBody(EmbeddingRequest, exchange.body)
  if (!request.ok) return exchange.refuse(request.refusal)
  const native = loaded.model.embeddingVectorSize
  const dimensions = readDimensions(request.value.dimensions, native, options.matryoshka)
  if (!dimensions.ok) return exchange.refuse(dimensions.refusal)
  const inputs = readInputs(loaded, model, inputsOf(request.value.input), 'input')
  if (!inputs.ok) return exchange.refuse(inputs.refusal)

  const lease = await model.slots.take(exchange.tenant, [], exchange.signal)
  if (!lease.ok) return exchange.refuse(lease.refusal)
  try {
    const made = await embed(model, inputs.value, counters, exchange.signal)
    counters.ended(made === undefined ? 'abort' : 'stop')
    if (made === undefined) return
    const asBase64 = request.value.encoding_format === 'base64'
    const data = made.vectors.map((vector, index) => {
      const cut = dimensions.value === native ? vector : normalize(vector.slice(0, dimensions.value))
      return { object: 'embedding', index, embedding: asBase64 ? vectorToBase64(cut) : cut }
    })
    exchange.answer({
      id: `embd-${exchange.requestId}`,
      object: 'list',
      created: unixSeconds(),
      model: options.name,
      data,
      usage: { prompt_tokens: made.tokens, total_tokens: made.tokens },
    })
  } finally {
    lease.value.leave()
  }
}
