import { ResponsesRequest } from '@parvis/wire/openai/responses'
import type { Clock } from '../../kit/clock.ts'
import { responseTranslator, toResponse } from '../dialects/responses/answer.ts'
import { nativeRequest } from '../dialects/responses/native.ts'
import { toChatRequest } from '../dialects/responses/request.ts'
import type { Endpoint } from './endpoint.ts'
import { translatedEndpoint } from './translated.ts'

/** `POST /v1/responses` (data-plane.md 8): stateless; on top of chat, or passed through to an engine that speaks it. */
export const responses = (clock: Clock): Endpoint =>
  translatedEndpoint({
    name: 'responses',
    path: '/responses',
    schema: ResponsesRequest,
    toChat: toChatRequest,
    whole: (completion, asked, request, model) => toResponse(completion, asked, request, model.name, clock),
    stream: (asked, request, model) => responseTranslator(asked, request, model.name, clock),
    native: {
      dialect: 'responses',
      request: (chat, value, asked, model) => nativeRequest(chat, value, asked, model, clock),
    },
    fields: {
      messages: 'input',
      max_completion_tokens: 'max_output_tokens',
      response_format: 'text.format',
      reasoning_effort: 'reasoning.effort',
      tools: 'tools',
    },
  })
