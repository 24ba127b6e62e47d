import { MessagesRequest } from '@parvis/wire/anthropic/messages'
import { messageTranslator, toMessage } from '../dialects/messages/answer.ts'
import { speakAnthropic } from '../dialects/messages/error.ts'
import { toChatRequest } from '../dialects/messages/request.ts'
import type { Dialect } from '../exchange.ts'
import { translatedEndpoint } from './translated.ts'

export const ANTHROPIC: Dialect = {
  speak: speakAnthropic,
  /** Their SDK sends `x-api-key`; their tools can be told to send a bearer, which then counts. */
  authorization({ authorization, 'x-api-key': key }) {
    return authorization ?? (typeof key === 'string' ? `Bearer ${key}` : undefined)
  },
  idHeader: 'request-id',
}

/** What the fields of a chat are called here. */
export const MESSAGE_FIELDS = {
  messages: 'messages',
  max_completion_tokens: 'max_tokens',
  response_format: 'output_config.format',
  reasoning_effort: 'thinking',
  stop: 'stop_sequences',
  tools: 'tools',
}

/** `POST /v1/messages` in Anthropic's shape: ours, for the tools that speak nothing else (data-plane.md 14). */
export const messages = translatedEndpoint({
  name: 'messages',
  path: '/messages',
  dialect: ANTHROPIC,
  schema: MessagesRequest,
  toChat: (request, model) => toChatRequest(request, model.features.reasoning),
  whole: (completion, asked, request, model) => toMessage(completion, asked, request, model.name),
  stream: (asked, request, model) => messageTranslator(asked, request, model.name),
  fields: MESSAGE_FIELDS,
})
