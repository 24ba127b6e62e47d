import { EmbeddingsRequest, EmbeddingsSettings } from '@parvis/wire/openai/embeddings'
import type { Model } from '../../catalog/model.ts'
import { no, type Outcome, yes } from '../../kit/outcome.ts'
import type { Refusal } from '../../kit/refusal.ts'
import { type Body, bufferToBody, type Change, slice, splice } from '../body.ts'
import { watch } from '../scan.ts'
import { checkFields, type Endpoint, fieldsOf, mismatch, type Reading, type Request, readBody } from './endpoint.ts'

const WATCHED = watch(['model', 'input', 'dimensions', 'encoding_format'])

const BYTES_PER_TOKEN = 4

/** `POST /v1/embeddings` (data-plane.md 9). */
export const embeddings: Endpoint = {
  name: 'embeddings',
  path: '/embeddings',
  enginePath: '/v1/embeddings',

  read: (body) => readBody(body, WATCHED),

  check(reading, model) {
    if (model.type !== 'embedding') return no(mismatch(embeddings, model))
    const checked = checkedFields(reading)
    if (!checked.ok) return checked
    const { settings, tokens } = checked.value
    const longest = Math.max(0, ...tokens)
    if (longest > model.contextTokens) return no({ code: 'context_exceeded', asked: longest, maximum: model.contextTokens })
    const wrong = wrongDimensions(settings.dimensions, model)
    if (wrong !== undefined) return no(wrong)

    const inputTokens = tokens.length > 0 ? tokens.reduce((sum, count) => sum + count, 0) : Math.ceil(reading.body.bytes / BYTES_PER_TOKEN)
    const encoding = settings.encoding_format ?? 'float'
    return yes({
      enginePath: embeddings.enginePath,
      stream: false,
      wantsUsage: false,
      estimate: { inputTokens, outputTokens: 0 },
      bytesFor: (remoteModel) => splice(reading.body, changes(reading, settings, model, remoteModel)),
      answerKey: 'data',
      convert: (answer) => toEncoding(answer, encoding),
    } satisfies Request)
  },
}

/** The settings, and how many tokens each input has where the client sent tokens. */
const checkedFields = (reading: Reading): Outcome<{ settings: EmbeddingsSettings; tokens: readonly number[] }> => {
  const fields = fieldsOf(reading)
  if (!fields.ok) return fields
  if (fields.value['input'] === undefined && reading.spans.has('input')) {
    // Too large to be parsed here: the engine counts and checks the texts.
    const settings = checkFields(EmbeddingsSettings, fields.value)
    return settings.ok ? yes({ settings: settings.value, tokens: [] }) : settings
  }
  const request = checkFields(EmbeddingsRequest, fields.value)
  return request.ok ? yes({ settings: request.value, tokens: tokenCounts(request.value.input) }) : request
}

const tokenCounts = (input: EmbeddingsRequest['input']): readonly number[] => {
  if (!Array.isArray(input)) return []
  if (typeof input[0] === 'number') return [input.length]
  return input.flatMap((tokens) => (Array.isArray(tokens) ? [tokens.length] : []))
}

const wrongDimensions = (dimensions: number | null | undefined, model: Model): Refusal | undefined => {
  if (typeof dimensions !== 'number' || dimensions === model.dimensions || model.matryoshka.includes(dimensions)) return undefined
  const reason =
    model.matryoshka.length === 0
      ? `the model ${model.name} has ${model.dimensions ?? 'a fixed number of'} dimensions and no others`
      : `the model ${model.name} can be cut to ${model.matryoshka.join(', ')} dimensions`
  return { code: 'field_invalid', field: 'dimensions', reason }
}

const changes = (reading: Reading, settings: EmbeddingsSettings, model: Model, remoteModel: string): Change[] => {
  const changed: Change[] = []
  const name = reading.spans.get('model')
  if (name !== undefined && remoteModel !== reading.model) changed.push({ ...name, bytes: Buffer.from(JSON.stringify(remoteModel)) })
  // The full length is what comes anyway, and engines refuse the field for models that cannot be cut, even then.
  const dimensions = reading.spans.get('dimensions')
  if (dimensions !== undefined && settings.dimensions === model.dimensions) changed.push({ ...dimensions, bytes: Buffer.from('null') })
  return changed
}

const EMBEDDING_KEY = Buffer.from('"embedding"')

/**
 * Gives the encoding that was asked for where the engine gave the other. The official Node SDK asks for base64 and decodes whatever
 * it gets: floats would become zeros without any error (data-plane.md 9). Looks at the first vector; parses only when it must.
 */
const toEncoding = (answer: Body, encoding: 'float' | 'base64'): Body | undefined => {
  const found = firstEncoding(answer)
  if (found === undefined || found === encoding) return answer
  try {
    const parsed = JSON.parse(slice(answer, { start: 0, end: answer.bytes }).toString()) as { data: { embedding: unknown }[] }
    const data = parsed.data.map((row) => ({
      ...row,
      embedding: encoding === 'base64' ? toBase64(row.embedding) : toFloats(row.embedding),
    }))
    return bufferToBody(Buffer.from(JSON.stringify({ ...parsed, data })))
  } catch {
    return undefined
  }
}

const firstEncoding = (answer: Body): 'float' | 'base64' | undefined => {
  for (const piece of answer.pieces) {
    for (let at = piece.indexOf(EMBEDDING_KEY); at >= 0; at = piece.indexOf(EMBEDDING_KEY, at + 1)) {
      // The same word is also the value of "object"; only as a key a colon follows.
      const behind = /^\s*:\s*(["[])/.exec(piece.toString('latin1', at + EMBEDDING_KEY.length, at + EMBEDDING_KEY.length + 32))
      if (behind !== null) return behind[1] === '[' ? 'float' : 'base64'
    }
  }
  return undefined
}

const FLOAT_BYTES = 4

const toBase64 = (vector: unknown): string => {
  if (!Array.isArray(vector)) throw new TypeError('a vector that is not an array')
  const bytes = Buffer.allocUnsafe(vector.length * FLOAT_BYTES)
  vector.forEach((component, index) => bytes.writeFloatLE(Number(component), index * FLOAT_BYTES))
  return bytes.toString('base64')
}

const toFloats = (text: unknown): number[] => {
  if (typeof text !== 'string') throw new TypeError('a vector that is not a string')
  const bytes = Buffer.from(text, 'base64')
  return Array.from({ length: bytes.length / FLOAT_BYTES }, (_, index) => bytes.readFloatLE(index * FLOAT_BYTES))
}
