import { MessageAnswer, MessagesError, MessagesRequest } from '@parvis/wire/anthropic/messages'
import { OcrAnswer, OcrRequest } from '@parvis/wire/mistral/ocr'
import { ChatChunk, ChatCompletion, ChatRequest } from '@parvis/wire/openai/chat'
import { Completion, CompletionRequest } from '@parvis/wire/openai/completions'
import { EmbeddingsAnswer, EmbeddingsRequest } from '@parvis/wire/openai/embeddings'
import { ErrorBody } from '@parvis/wire/openai/error'
import { Model, ModelList } from '@parvis/wire/openai/models'
import { RerankAnswer, RerankRequest } from '@parvis/wire/openai/rerank'
import { ResponseObject, ResponsesRequest } from '@parvis/wire/openai/responses'
import { TranscriptionForm } from '@parvis/wire/openai/transcription'
import { z } from 'zod'
import type { Described, DescribedAnswer } from '../kit/described.ts'

const JSON_TYPE = 'application/json'
const EVENTS = 'text/event-stream'

/** Statuses of data-plane.md 3.2, in the words of the reference. */
const REFUSALS: Readonly<Record<number, string>> = {
  400: 'The body, a field or a header is not valid; the context window is exceeded; the model does not serve this endpoint.',
  401: 'There is no key.',
  403: 'The key is unknown, has expired, or has no right on this project.',
  408: 'The body did not arrive in time.',
  409: 'The Idempotency-Key was used for another request, or its answer is not kept any more.',
  416: 'More output is asked for than the model has.',
  422: 'The model is missing or not found.',
  429: 'A limit or a budget is reached. `retry-after` says when to come back.',
  500: 'The engine failed, or we did.',
  503: 'No engine is ready, or the service is busy. `retry-after` says when to come back.',
  504: 'The answer took too long.',
}

const refusals = (body: z.ZodType, statuses: readonly number[] = Object.keys(REFUSALS).map(Number)): DescribedAnswer[] =>
  statuses.map((status) => ({ status, what: REFUSALS[status] ?? 'Refused.', content: { [JSON_TYPE]: body } }))

/** Anthropic's statuses (dialects/messages/error.ts). */
const messagesRefusals: DescribedAnswer[] = [
  ...refusals(MessagesError, [400, 401, 403, 408, 409, 429, 500, 504]),
  { status: 404, what: 'The model is not found.', content: { [JSON_TYPE]: MessagesError } },
  { status: 529, what: 'No engine is ready, or the service is busy.', content: { [JSON_TYPE]: MessagesError } },
]

const IDEMPOTENCY = 'The same key within its window attaches to the same answer, which is billed once.'
const headers = { 'Idempotency-Key': IDEMPOTENCY }

/** Events are `data:` lines; each has an object of this kind, and the last one says `[DONE]`. */
const events = (event: z.ZodType) =>
  z.string().meta({ description: 'Server-sent events.', 'x-event': z.toJSONSchema(event, { io: 'output' }) })

type Said = Omit<Described, 'method' | 'group' | 'key' | 'path'> & { readonly method?: 'GET' }

const OPERATIONS: Readonly<Record<string, Said>> = {
  'POST /chat/completions': {
    summary: 'Answer a conversation, at once or as a stream.',
    headers,
    body: { contentType: JSON_TYPE, schema: ChatRequest },
    answers: [
      {
        status: 200,
        what: 'The answer; with `stream`, its pieces.',
        content: { [JSON_TYPE]: ChatCompletion, [EVENTS]: events(ChatChunk) },
      },
      ...refusals(ErrorBody),
    ],
  },
  'POST /completions': {
    summary: 'Go on with a text; the older endpoint, for code editors.',
    headers,
    body: { contentType: JSON_TYPE, schema: CompletionRequest },
    answers: [
      { status: 200, what: 'The text; with `stream`, its pieces.', content: { [JSON_TYPE]: Completion, [EVENTS]: events(Completion) } },
      ...refusals(ErrorBody),
    ],
  },
  'POST /embeddings': {
    summary: 'Turn texts into vectors.',
    headers,
    body: { contentType: JSON_TYPE, schema: EmbeddingsRequest },
    answers: [{ status: 200, what: 'One vector for each text.', content: { [JSON_TYPE]: EmbeddingsAnswer } }, ...refusals(ErrorBody)],
  },
  'POST /messages': {
    summary: 'Answer a conversation, in Anthropic’s shape; the key may come as `x-api-key`.',
    headers,
    body: { contentType: JSON_TYPE, schema: MessagesRequest },
    answers: [
      {
        status: 200,
        what: 'The answer; with `stream`, Anthropic’s events.',
        content: { [JSON_TYPE]: MessageAnswer, [EVENTS]: z.string().meta({ description: 'Server-sent events with names.' }) },
      },
      ...messagesRefusals,
    ],
  },
  'POST /messages/count_tokens': {
    summary: 'Count the tokens of a conversation in Anthropic’s shape, without answering it.',
    body: { contentType: JSON_TYPE, schema: MessagesRequest.omit({ max_tokens: true }) },
    answers: [{ status: 200, what: 'The count.', content: { [JSON_TYPE]: z.looseObject({ input_tokens: z.int() }) } }, ...messagesRefusals],
  },
  'POST /ocr': {
    summary: 'Read a document, in Mistral’s shape; passed through to an engine that does it.',
    headers,
    body: { contentType: JSON_TYPE, schema: OcrRequest },
    answers: [{ status: 200, what: 'Its pages.', content: { [JSON_TYPE]: OcrAnswer } }, ...refusals(ErrorBody)],
  },
  'POST /rerank': {
    summary: 'Order documents by how well they fit a query.',
    headers,
    body: { contentType: JSON_TYPE, schema: RerankRequest },
    answers: [{ status: 200, what: 'The best first.', content: { [JSON_TYPE]: RerankAnswer } }, ...refusals(ErrorBody)],
  },
  'POST /responses': {
    summary: 'Answer in the shape of OpenAI’s Responses API; nothing is kept between calls.',
    headers,
    body: { contentType: JSON_TYPE, schema: ResponsesRequest },
    answers: [
      {
        status: 200,
        what: 'The answer; with `stream`, every event of it.',
        content: { [JSON_TYPE]: ResponseObject, [EVENTS]: z.string().meta({ description: 'Server-sent events with names.' }) },
      },
      ...refusals(ErrorBody),
    ],
  },
  'POST /audio/transcriptions': {
    summary: 'Write down what is said in a recording.',
    headers,
    body: { contentType: 'multipart/form-data', schema: TranscriptionForm },
    answers: [
      {
        status: 200,
        what: 'The transcript, as `response_format` has it.',
        content: {
          [JSON_TYPE]: z.looseObject({ text: z.string() }),
          'text/plain': z.string(),
          [EVENTS]: z.string().meta({ description: 'Server-sent events: transcript.text.delta and transcript.text.done.' }),
        },
      },
      ...refusals(ErrorBody),
    ],
  },
  'GET /models': {
    method: 'GET',
    summary: 'List the models that are served.',
    answers: [
      { status: 200, what: 'All types in one list.', content: { [JSON_TYPE]: ModelList } },
      ...refusals(ErrorBody, [401, 403, 429]),
    ],
  },
  'GET /models/*': {
    method: 'GET',
    summary: 'Read one model.',
    params: { path: 'The name of the model.' },
    answers: [
      { status: 200, what: 'The model.', content: { [JSON_TYPE]: Model } },
      { status: 404, what: 'There is none of this name.', content: { [JSON_TYPE]: ErrorBody } },
      ...refusals(ErrorBody, [401, 403, 429]),
    ],
  },
}

/** The data plane for the reference: each operation on the default project, and on the project that the URL names (data-plane.md 2.1). */
export const inferenceReference: readonly Described[] = Object.entries(OPERATIONS).flatMap(([name, said]) => {
  const path = name.slice(name.indexOf(' ') + 1)
  const both = { ...said, method: said.method ?? ('POST' as const), group: 'Inference', key: 'inference' as const }
  return [
    { ...both, path: `/v1${path}` },
    { ...both, path: `/:project/v1${path}`, params: { project: 'The project that is billed, a UUID.', ...said.params } },
  ]
})
