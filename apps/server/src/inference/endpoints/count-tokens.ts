import { CountTokensRequest } from '@parvis/wire/anthropic/messages'
import type { Model } from '../../catalog/model.ts'
import { no, type Outcome, yes } from '../../kit/outcome.ts'
import { bufferToBody } from '../body.ts'
import { readConversation } from '../conversation.ts'
import { toChatRequest } from '../dialects/messages/request.ts'
import type { Exchange } from '../exchange.ts'
import type { GuessTokens } from '../guess.ts'
import { checkMedia } from '../media/media.ts'
import type { Input, Rooms } from '../serve.ts'
import { chat } from './chat.ts'
import { checkFields, mismatch, type Reading, type Request } from './endpoint.ts'
import { MESSAGE_FIELDS, messages } from './messages.ts'
import { inWordsOf, toBody } from './translated.ts'

export const COUNT_TOKENS_PATH = '/messages/count_tokens'

/** What is counted: words by an engine where one can, images by rule, since an engine would fetch what they point at. */
type Question = { readonly words: Request; readonly mediaTokens: number }

/**
 * `POST /v1/messages/count_tokens` in Anthropic's shape (ours, as `/v1/messages` is): how much input a message would be. Coding agents ask it
 * to know when to make a conversation shorter. An engine of the model counts by its own vocabulary; where none can, or not in time, it is the
 * estimate by which requests are admitted, and `x-parvis-counted` says which of the two it is. It is a request of the minute, costs nothing, and stands in
 * no books.
 */
export const countTokens =
  (rooms: Pick<Rooms, 'authenticate' | 'resolve' | 'admit'>, input: Pick<Input, 'guess' | 'count'>) =>
  async (exchange: Exchange): Promise<void> => {
    const caller = rooms.authenticate(exchange.authorization, exchange.projectId, exchange)
    if (!caller.ok) return exchange.refuse(caller.refusal)

    const body = await exchange.readBody(caller.value.organizationId)
    if (!body.ok) return exchange.refuse(body.refusal)

    const reading = messages.read(body.value)
    if (!reading.ok) return exchange.refuse(reading.refusal)

    const model = rooms.resolve(reading.value.model, exchange.acceptedAt)
    if (!model.ok) return exchange.refuse(model.refusal)

    const question = toQuestion(reading.value, model.value, input.guess)
    if (!question.ok) return exchange.refuse(question.refusal)

    const ticket = await rooms.admit(caller.value, model.value, { inputTokens: 0, outputTokens: 0 })
    if (!ticket.ok) return exchange.refuse(ticket.refusal)
    exchange.setHeaders(ticket.value.headers())

    try {
      const { words, mediaTokens } = question.value
      const counted = await input.count(model.value, words, exchange.signal())
      exchange.addHeaders(['x-parvis-counted', counted === undefined ? 'estimate' : 'engine'])
      const tokens = (counted ?? words.estimate.inputTokens) + mediaTokens
      exchange.answer(200, bufferToBody(Buffer.from(JSON.stringify({ input_tokens: tokens }))))
    } finally {
      ticket.value.settle(undefined)
    }
  }

const toQuestion = (reading: Reading, model: Model, guess: GuessTokens): Outcome<Question> => {
  if (model.type !== 'chat') return no(mismatch({ path: COUNT_TOKENS_PATH }, model))
  const asked = checkFields(CountTokensRequest, reading.value)
  if (!asked.ok) return asked
  // No answer is asked for, and the least of it changes nothing.
  const body = toChatRequest({ ...asked.value, max_tokens: 1, stream: false }, model.features.reasoning)
  return inWordsOf(MESSAGE_FIELDS, readQuestion(body, model, guess))
}

const readQuestion = (body: Record<string, unknown>, model: Model, guess: GuessTokens): Outcome<Question> => {
  const whole = chat.read(toBody(body))
  if (!whole.ok) return whole
  // Every rule of a chat holds for what is only counted, too.
  const checked = chat.check(whole.value, model, guess)
  if (!checked.ok) return checked
  const conversation = readConversation(whole.value.body, whole.value.spans.get('messages') ?? { start: 0, end: 0 })
  if (!conversation.ok) return conversation
  const media = checkMedia(whole.value.body, conversation.value, model)
  if (!media.ok) return media
  if (media.value.images === 0) return yes({ words: checked.value, mediaTokens: 0 })
  const text = chat.read(toBody({ ...body, messages: withoutImages(body['messages']) }))
  const words = text.ok ? chat.check(text.value, model, guess) : text
  return words.ok ? yes({ words: words.value, mediaTokens: media.value.tokens }) : words
}

const withoutImages = (given: unknown): unknown =>
  (given as { content: unknown }[]).map((message) => ({
    ...message,
    ...(Array.isArray(message.content)
      ? { content: message.content.map((part: { type: string }) => (part.type === 'text' ? part : { type: 'text', text: '' })) }
      : {}),
  }))
