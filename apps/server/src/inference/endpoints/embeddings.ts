import { EmbeddingsRequest, EmbeddingsSettings, MAX_INPUTS } from '@parvis/wire/openai/embeddings'
import type { Model } from '../../catalog/model.ts'
import { no, type Outcome, yes } from '../../kit/outcome.ts'
import type { Refusal } from '../../kit/refusal.ts'
import { type Body, bufferToBody, type Change, slice, splice } from '../body.ts'
import { guessUnseen, mixOf } from '../guess.ts'
import { type Cursor, read, watch } from '../scan.ts'
import { cutTo, lengthOf, toBase64, toFloats } from '../vectors.ts'
import { checkFields, type Endpoint, fieldsOf, mismatch, type Reading, type Request, readBody } from './endpoint.ts'

// Some engines take a conversation in place of the input, and fetch the images in it.
const WATCHED = watch(['model', 'input', 'dimensions', 'encoding_format'], ['messages'])

/** `POST /v1/embeddings` (data-plane.md 9). */
export const embeddings: Endpoint = {
  name: 'embeddings',
  path: '/embeddings',
  enginePath: '/v1/embeddings',

  read: (body) => readBody(body, WATCHED),

  check(reading, model, guess = guessUnseen) {
    if (model.type !== 'embedding') return no(mismatch(embeddings, model))
    const checked = checkedFields(reading)
    if (!checked.ok) return checked
    const { settings, tokens } = checked.value
    const longest = Math.max(0, ...tokens)
    if (longest > model.contextTokens) return no({ code: 'context_exceeded', asked: longest, maximum: model.contextTokens })
    const wrong = wrongDimensions(settings.dimensions, model)
    if (wrong !== undefined) return no(wrong)

    const sent = tokens.reduce((sum, count) => sum + count, 0)
    const mix = mixOf(reading.body, [reading.spans.get('input')])
    const input = guess(model.name, mix)
    const encoding = settings.encoding_format ?? 'float'
    return yes({
      enginePath: embeddings.enginePath,
      stream: false,
      wantsUsage: false,
      estimate: {
        inputTokens: tokens.length > 0 ? sent : input.tokens,
        outputTokens: 0,
        ...(tokens.length > 0 ? {} : { guessed: { least: input.least, most: input.most, mix } }),
      },
      bytesFor: (remoteModel) => splice(reading.body, changes(reading, settings, model, remoteModel)),
      answerKey: 'data',
      convert: (answer) => toAsked(answer, encoding, settings.dimensions ?? undefined),
    } satisfies Request)
  },
}

/** The settings, and how many tokens each input has where the client sent tokens. */
const checkedFields = (reading: Reading): Outcome<{ settings: EmbeddingsSettings; tokens: readonly number[] }> => {
  const fields = fieldsOf(reading)
  if (!fields.ok) return fields
  if (fields.value['input'] === undefined && reading.spans.has('input')) {
    // Too large to be parsed here: walked over instead. The engine counts the texts.
    const settings = checkFields(EmbeddingsSettings, fields.value)
    if (!settings.ok) return settings
    const tokens = walkInputs(reading)
    return tokens.ok ? yes({ settings: settings.value, tokens: tokens.value }) : tokens
  }
  const request = checkFields(EmbeddingsRequest, fields.value)
  return request.ok ? yes({ settings: request.value, tokens: tokenCounts(request.value.input) }) : request
}

const QUOTE = 0x22
const OPEN_BRACKET = 0x5b
const EMPTY_BYTES = 2
type Kind = 'text' | 'tokens' | 'number'

/** What the schema checks of a small body: how many inputs there are, that none is empty, how many tokens each has. */
const walkInputs = (reading: Reading): Outcome<readonly number[]> => {
  let wrong: Refusal | undefined
  const invalid = (field: string, reason: string): void => {
    wrong ??= { code: 'field_invalid', field, reason }
  }
  const list = reading.spans.get('input')
  const counts: number[] = []
  const countTokens = (cursor: Cursor): number => {
    let count = 0
    for (; cursor.element(count); count += 1) cursor.skip()
    return count
  }
  const walked = read(reading.body, list?.start ?? 0, (cursor) => {
    if (cursor.peek() === QUOTE) {
      const span = cursor.take()
      if (span.end - span.start <= EMPTY_BYTES) invalid('input', 'expected a string that is not empty')
      return
    }
    if (cursor.peek() !== OPEN_BRACKET) return invalid('input', 'expected a string or an array')
    let places = 0
    let kind: Kind | undefined
    for (; cursor.element(places); places += 1) {
      const first = cursor.peek()
      const found = first === QUOTE ? 'text' : first === OPEN_BRACKET ? 'tokens' : 'number'
      kind ??= found
      if (found !== kind) invalid(`input[${places}]`, 'expected all inputs to be of one kind')
      if (found === 'tokens') {
        const count = countTokens(cursor)
        if (count === 0) invalid(`input[${places}]`, 'expected at least one token')
        counts.push(count)
        continue
      }
      const span = cursor.take()
      if (found === 'text' && span.end - span.start <= EMPTY_BYTES) invalid(`input[${places}]`, 'expected a string that is not empty')
    }
    if (kind === undefined) invalid('input', 'expected at least one input')
    else if (kind === 'number') counts.push(places)
    else if (places > MAX_INPUTS) invalid('input', `expected at most ${MAX_INPUTS} inputs`)
  })
  if (!walked.ok) return no({ code: 'body_not_json', reason: walked.refusal })
  return wrong === undefined ? yes(counts) : no(wrong)
}

const tokenCounts = (input: EmbeddingsRequest['input']): readonly number[] => {
  if (!Array.isArray(input)) return []
  if (typeof input[0] === 'number') return [input.length]
  return input.flatMap((tokens) => (Array.isArray(tokens) ? [tokens.length] : []))
}

const wrongDimensions = (dimensions: number | null | undefined, model: Model): Refusal | undefined => {
  if (typeof dimensions !== 'number' || dimensions === model.dimensions || model.matryoshka.includes(dimensions)) return undefined
  const least = model.rules.minDimensions
  if (least !== null && model.dimensions !== null && dimensions >= least && dimensions <= model.dimensions) return undefined
  const reason =
    least !== null
      ? `the model ${model.name} can be cut to between ${least} and ${model.dimensions} dimensions`
      : model.matryoshka.length === 0
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
  const messages = reading.spans.get('messages')
  if (messages !== undefined) changed.push({ ...messages, bytes: Buffer.from('null') })
  return changed
}

const EMBEDDING_KEY = Buffer.from('"embedding"')
/** 4,096 numbers as text, and some room. */
const LOOK_BYTES = 256 * 1024

/**
 * Gives the encoding and the length that were asked for where the engine gave another. The official Node SDK asks for base64 and decodes
 * whatever it gets: floats would become zeros without any error (data-plane.md 9). Looks at the first vector; parses only when it must.
 */
const toAsked = (answer: Body, encoding: 'float' | 'base64', dimensions: number | undefined): Body | undefined => {
  const found = firstVector(answer)
  if (found === undefined) return answer
  const cut = dimensions !== undefined && found.length() > dimensions
  if (found.encoding === encoding && !cut) return answer
  try {
    const parsed = JSON.parse(slice(answer, { start: 0, end: answer.bytes }).toString()) as { data: { embedding: unknown }[] }
    const data = parsed.data.map((row) => {
      const vector = typeof row.embedding === 'string' ? toFloats(row.embedding) : (row.embedding as number[])
      const asked = cut ? cutTo(vector, dimensions) : vector
      return { ...row, embedding: encoding === 'base64' ? toBase64(asked) : asked }
    })
    return bufferToBody(Buffer.from(JSON.stringify({ ...parsed, data })))
  } catch {
    return undefined
  }
}

const firstVector = (answer: Body): { encoding: 'float' | 'base64'; length(): number } | undefined => {
  const head = slice(answer, { start: 0, end: Math.min(LOOK_BYTES, answer.bytes) })
  for (let at = head.indexOf(EMBEDDING_KEY); at >= 0; at = head.indexOf(EMBEDDING_KEY, at + 1)) {
    // The same word is also the value of "object"; only as a key a colon follows.
    const behind = /^\s*:\s*(["[])/.exec(head.toString('latin1', at + EMBEDDING_KEY.length, at + EMBEDDING_KEY.length + 32))
    if (behind === null) continue
    const start = at + EMBEDDING_KEY.length + behind[0].length
    const encoding = behind[1] === '[' ? 'float' : 'base64'
    const text = (): string => {
      const end = head.indexOf(encoding === 'float' ? ']' : '"', start)
      return head.toString('latin1', start, end < 0 ? head.length : end)
    }
    return { encoding, length: () => (encoding === 'float' ? text().split(',').length : lengthOf(text().replaceAll('\\', ''))) }
  }
  return undefined
}
