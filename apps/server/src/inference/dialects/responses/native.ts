import { ResponsesRequest } from '@parvis/wire/openai/responses'
import type { Model } from '../../../catalog/model.ts'
import type { Clock } from '../../../kit/clock.ts'
import { type Body, bufferToBody, slice } from '../../body.ts'
import type { Request } from '../../endpoints/endpoint.ts'
import { foldCase, scan, watch } from '../../scan.ts'
import { responseCounts } from './counts.ts'
import { passedStream } from './passed.ts'
import { toChatRequest } from './request.ts'

const PATH = '/v1/responses'
const WATCHED = watch([], ['status', 'usage'])

type Fields = Record<string, unknown>

/**
 * A responses request for an engine that speaks responses. Whatever was decided about it was decided about the chat that it means, so what
 * the rules of chat changed there (limit, effort, images that were fetched, a system prompt for tools) is carried over; the rest goes as
 * it came, and so does the answer.
 */
export const nativeRequest = (chat: Request, value: Fields, asked: ResponsesRequest, model: Model, clock: Clock): Request => {
  const { translate: _translate, convert: _convert, complete: _complete, ...common } = chat
  return {
    ...common,
    enginePath: PATH,
    answerKey: 'output',
    bytesFor: (remoteModel) => bufferToBody(Buffer.from(JSON.stringify(toNative(value, asked, chat.bytesFor(remoteModel), remoteModel)))),
    countsOf: (answer) => responseCounts(valueOf(answer, 'usage')),
    // Only these two are answers. What failed, or is still on its way, is none.
    convert: (answer) => (isAnswer(valueOf(answer, 'status')) ? answer : undefined),
    ...(chat.stream ? { openAnswer: (exchange, at) => passedStream(exchange, chat, asked, { ...at, model, clock }) } : {}),
  }
}

const isAnswer = (status: unknown): boolean => status === 'completed' || status === 'incomplete'

const valueOf = (answer: Body, key: 'status' | 'usage'): unknown => {
  const scanned = scan(answer, WATCHED)
  const span = scanned.ok ? scanned.value.spans.get(key) : undefined
  try {
    return span && JSON.parse(slice(answer, span).toString())
  } catch {
    return undefined
  }
}

type ChatBody = {
  readonly messages: readonly { readonly role: string; readonly content?: unknown }[]
  readonly max_tokens?: number
  readonly max_completion_tokens?: number
  readonly reasoning_effort?: string
}

const toNative = (value: Fields, asked: ResponsesRequest, chatBytes: Body, remoteModel: string): Fields => {
  const before = toChatRequest(asked) as ChatBody
  const after = JSON.parse(slice(chatBytes, { start: 0, end: chatBytes.bytes }).toString()) as ChatBody
  const limit = after.max_completion_tokens ?? after.max_tokens
  const [first] = after.messages
  const prompted = first?.role === 'system' && before.messages[0]?.role !== 'system'
  const images = imagesOf(after)
  const brought = new Map(imagesOf(before).map((url, place) => [url, images[place] ?? url]))
  // vLLM's way to bring a conversation along beside the input: nobody has looked into it.
  const { previous_input_messages: _beside, ...given } = withoutTwins(value)
  return {
    ...given,
    model: remoteModel,
    // Nothing is kept here (data-plane.md 8.2), so nothing may be kept there.
    store: false,
    ...(Array.isArray(value['input']) ? { input: value['input'].map((item) => toItem(item, brought)) } : {}),
    ...(Array.isArray(value['tools']) ? { tools: value['tools'].map(withoutTwins) } : {}),
    ...(prompted ? { instructions: first.content } : {}),
    ...(limit === undefined ? {} : { max_output_tokens: limit }),
    ...(after.reasoning_effort === undefined ? {} : { reasoning: { ...asked.reasoning, effort: after.reasoning_effort } }),
  }
}

/** Images by URL stand in the same order in what a chat is made of and in what was sent for it. */
const imagesOf = ({ messages }: ChatBody): string[] =>
  messages.flatMap(({ content }) =>
    (Array.isArray(content) ? content : []).flatMap((part: Fields) =>
      part['type'] === 'image_url' ? [(part['image_url'] as { url: string }).url] : [],
    ),
  )

/** What we act on in a request, at its top and inside. */
const KNOWN: ReadonlySet<string> = new Set([
  ...Object.keys(ResponsesRequest.shape),
  'type',
  'role',
  'content',
  'output',
  'text',
  'image_url',
  'file_id',
  'file_url',
  'file_data',
  'name',
  'call_id',
  'arguments',
  'store',
  'previous_input_messages',
])

/** Engines written in Go match keys without regard to case: what was not checked under its own name must not count under another. */
const withoutTwins = (fields: unknown): Fields =>
  Object.fromEntries(Object.entries(fields as Fields).filter(([key]) => KNOWN.has(key) || !KNOWN.has(foldCase(key))))

const toItem = (given: unknown, brought: ReadonlyMap<string, string>): Fields => {
  const item = withoutTwins(given)
  const parts = (content: unknown): unknown =>
    Array.isArray(content) ? content.map((part) => toPart(withoutTwins(part), brought)) : content
  return {
    ...item,
    // Most chat templates do not know `developer`, and an engine's own do not tell the two apart (data-plane.md 6.2).
    ...(item['role'] === 'developer' ? { role: 'system' } : {}),
    ...('content' in item && item['type'] !== 'reasoning' ? { content: parts(item['content']) } : {}),
    ...('output' in item ? { output: parts(item['output']) } : {}),
  }
}

/** An image goes as data, never as something to be fetched; an engine would not look where to. */
const toPart = (part: Fields, brought: ReadonlyMap<string, string>): Fields => {
  const { image_url: url, file_id: _file, file_url: _fileUrl, file_data: _fileData, ...rest } = part
  return part['type'] === 'input_image' ? { ...rest, image_url: brought.get(String(url)) } : rest
}
