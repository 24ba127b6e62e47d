import type { z } from 'zod'
import type { Model } from '../../catalog/model.ts'
import type { EngineDialect } from '../../engines/replica.ts'
import { no, type Outcome, yes } from '../../kit/outcome.ts'
import type { Refusal } from '../../kit/refusal.ts'
import { type Body, bufferToBody, slice } from '../body.ts'
import type { Asked, Translator } from '../dialects/translator.ts'
import type { GuessTokens } from '../guess.ts'
import { watch } from '../scan.ts'
import { chat } from './chat.ts'
import { checkFields, type Endpoint, mismatch, parse, type Reading, type Request, readBody } from './endpoint.ts'

/**
 * What these dialects may weigh: Anthropic's own bound. Their bodies are parsed and written anew, which blocks everybody's streams
 * for some 5 ms a megabyte; chat takes larger ones, since it passes them on.
 */
const MAX_BODY_BYTES = 32 * 1024 * 1024

const WATCHED = watch(['model'])

export type Translation<T> = Pick<Endpoint, 'name' | 'path' | 'dialect'> & {
  readonly schema: z.ZodType<T>
  /** The chat request that means the same. */
  toChat(request: T, model: Model): Record<string, unknown>
  /** The chat completion, in this dialect. */
  whole(completion: unknown, asked: Asked, request: T, model: Model): unknown
  stream(asked: Asked, request: T, model: Model): Translator
  /** The request for an engine that speaks this dialect itself, made of the chat that has been checked and what came. */
  readonly native?: {
    readonly dialect: EngineDialect
    request(chat: Request, value: Record<string, unknown>, asked: T, model: Model): Request
  }
  /** What a field of the chat request is called here, for refusals. */
  readonly fields: Readonly<Record<string, string>>
}

/**
 * An endpoint that is another way of writing a chat: the request becomes a chat request, and from there on every rule of chat holds
 * (limits, images, what the model can do, what the engine gets); the answer is written in the dialect.
 */
export const translatedEndpoint = <T>(translation: Translation<T>): Endpoint => {
  const { name, path, dialect, fields, native } = translation

  const inTheirWords = <V>(outcome: Outcome<V>): Outcome<V> => inWordsOf(fields, outcome)

  const wrap = (written: Request, value: Record<string, unknown>, asked: T, model: Model): Request => {
    // The answer is written by what was asked, which is kept as it was parsed.
    const request: Request = { ...written, lean: false }
    const { complete } = request
    return {
      ...request,
      // The translator needs it; the client sees it in its own way.
      wantsUsage: true,
      wantsRunningUsage: true,
      convert(answer, exchange) {
        const completion = parse(slice(answer, { start: 0, end: answer.bytes }))
        if (!completion.ok) return undefined
        return bufferToBody(Buffer.from(JSON.stringify(translation.whole(completion.value, exchange, asked, model))))
      },
      fieldOf: (param) => nameOf(fields, param) ?? param,
      translate: (exchange) => translation.stream(exchange, asked, model),
      ...(native === undefined ? {} : { native: { dialect: native.dialect, request: native.request(request, value, asked, model) } }),
      ...(complete === undefined
        ? {}
        : {
            async complete(exchange) {
              const completed = inTheirWords(await complete(exchange))
              return completed.ok ? yes(wrap(completed.value, value, asked, model)) : completed
            },
          }),
    }
  }

  const endpoint: Endpoint = {
    name,
    path,
    enginePath: chat.enginePath,
    ...(dialect === undefined ? {} : { dialect }),

    read(body) {
      if (body.bytes > MAX_BODY_BYTES) return no({ code: 'body_too_large', maxBytes: MAX_BODY_BYTES })
      const reading = readBody(body, WATCHED)
      if (!reading.ok || reading.value.value !== undefined) return reading
      const value = parse(slice(body, { start: 0, end: body.bytes }))
      return value.ok ? yes({ ...reading.value, value: value.value as Record<string, unknown> }) : value
    },

    check(reading, model, guess) {
      if (model.type !== 'chat') return no(mismatch(endpoint, model))
      const asked = checkFields(translation.schema, reading.value)
      if (!asked.ok) return asked
      const request = inTheirWords(asChat({ ...translation.toChat(asked.value, model), model: reading.model }, model, guess))
      return request.ok ? yes(wrap(request.value, reading.value ?? {}, asked.value, model)) : request
    },
  }
  return endpoint
}

const asChat = (body: Record<string, unknown>, model: Model, guess?: GuessTokens): Outcome<Request> => chatOf(toBody(body), model, guess)

/** The chat that a body asks for. */
export const chatOf = (body: Body, model: Model, guess?: GuessTokens): Outcome<Request> => {
  const reading: Outcome<Reading> = chat.read(body)
  return reading.ok ? chat.check(reading.value, model, guess) : reading
}

export const toBody = (value: unknown): Body => bufferToBody(Buffer.from(JSON.stringify(value)))

/** Refusals name the field that the caller wrote. */
export const inWordsOf = <V>(fields: Readonly<Record<string, string>>, outcome: Outcome<V>): Outcome<V> =>
  outcome.ok ? outcome : no(rename(outcome.refusal, fields))

const rename = (refusal: Refusal, fields: Readonly<Record<string, string>>): Refusal => {
  if (refusal.code !== 'field_invalid' && refusal.code !== 'output_limit') return refusal
  const known = nameOf(fields, refusal.field)
  return known === undefined ? refusal : { ...refusal, field: known }
}

/** Behind the name stands a place in the chat request, which the caller never saw. */
const nameOf = (fields: Readonly<Record<string, string>>, place: string): string | undefined => {
  const known = Object.keys(fields).find((field) => place === field || place.startsWith(`${field}.`) || place.startsWith(`${field}[`))
  return known === undefined ? undefined : fields[known]
}
