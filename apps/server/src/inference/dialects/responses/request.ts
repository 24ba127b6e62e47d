import type { ResponsesRequest } from '@parvis/wire/openai/responses'
import { type Conversation, given, openConversation, picturesOf, type Said, textOf } from '../chat-messages.ts'

type Content = Extract<ResponsesRequest['input'][number], { type: 'message' }>['content']

/** A responses request as the chat request that means the same (data-plane.md 8.1 to 8.3). */
export const toChatRequest = (request: ResponsesRequest): Record<string, unknown> => {
  const { reasoning, text, tools } = request
  const format = toResponseFormat(text?.format)
  return given({
    model: request.model,
    messages: toMessages(request),
    stream: request.stream === true ? true : undefined,
    max_completion_tokens: request.max_output_tokens,
    temperature: request.temperature,
    top_p: request.top_p,
    reasoning_effort: reasoning?.effort,
    response_format: format,
    ...(tools !== undefined && tools !== null && tools.length > 0
      ? {
          tools: tools.map(({ name, description, parameters, strict }) => ({
            type: 'function',
            function: given({ name, description, parameters, strict }),
          })),
          tool_choice: toToolChoice(request.tool_choice),
          parallel_tool_calls: request.parallel_tool_calls,
        }
      : {}),
  })
}

const toMessages = (request: ResponsesRequest) => {
  const conversation = openConversation()
  if (typeof request.instructions === 'string' && request.instructions !== '') conversation.system(request.instructions)
  if (typeof request.input === 'string') conversation.user([{ text: request.input }])
  else for (const item of request.input) addItem(conversation, item)
  return conversation.messages()
}

const addItem = (conversation: Conversation, item: Exclude<ResponsesRequest['input'], string>[number]): void => {
  switch (item.type) {
    case 'message': {
      const said = toSaid(item.content)
      if (item.role === 'user') conversation.user(said)
      else if (item.role === 'assistant') conversation.assistant(textOf(said))
      else conversation.system(textOf(said))
      return
    }
    case 'function_call':
      return conversation.call(item.call_id, item.name, item.arguments)
    case 'function_call_output': {
      const said = toSaid(item.output)
      return conversation.result(item.call_id, textOf(said), picturesOf(said))
    }
    case 'reasoning':
      return
  }
}

const toSaid = (content: Content): Said[] =>
  typeof content === 'string'
    ? [{ text: content }]
    : content.map((part) => {
        if (part.type === 'input_image') return { picture: { url: part.image_url, detail: part.detail } }
        return { text: part.type === 'refusal' ? part.refusal : part.text }
      })

/** Flat here, with a wrapper in a chat. */
const toResponseFormat = (format: NonNullable<ResponsesRequest['text']>['format']): unknown => {
  if (format === undefined || format === null || format.type === 'text') return undefined
  if (format.type === 'json_object') return { type: 'json_object' }
  const { name, schema, strict, description } = format
  return { type: 'json_schema', json_schema: given({ name, schema, strict, description }) }
}

const toToolChoice = (choice: ResponsesRequest['tool_choice']): unknown =>
  typeof choice === 'object' && choice !== null ? { type: 'function', function: { name: choice.name } } : choice
