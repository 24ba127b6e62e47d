import type { MessagesRequest } from '@parvis/wire/anthropic/messages'
import { type Conversation, given, openConversation, picturesOf, type Said, textOf } from '../chat-messages.ts'

type UserContent = Extract<MessagesRequest['messages'][number], { role: 'user' }>['content']
type AssistantContent = Extract<MessagesRequest['messages'][number], { role: 'assistant' }>['content']
type UserBlock = Exclude<UserContent, string>[number]
type Shown = Exclude<UserBlock, { type: 'tool_result' }>

/** A message request as the chat request that means the same. */
export const toChatRequest = (request: MessagesRequest, reasons: boolean): Record<string, unknown> => {
  const { tools, tool_choice: choice } = request
  const alone = choice !== undefined && choice !== null && choice.type !== 'none' && choice.disable_parallel_tool_use === true
  return given({
    model: request.model,
    messages: toMessages(request),
    stream: request.stream === true ? true : undefined,
    max_completion_tokens: request.max_tokens,
    temperature: request.temperature,
    top_p: request.top_p,
    top_k: request.top_k,
    stop: request.stop_sequences?.length === 0 ? undefined : request.stop_sequences,
    response_format: toResponseFormat(request),
    // A model that never thinks would be told something that it does not understand.
    reasoning_effort: reasons ? toEffort(request) : undefined,
    ...(tools !== undefined && tools !== null && tools.length > 0
      ? {
          tools: tools.map(({ name, description, input_schema }) => ({
            type: 'function',
            function: given({ name, description, parameters: input_schema }),
          })),
          tool_choice: toToolChoice(choice),
          parallel_tool_calls: alone ? false : undefined,
        }
      : {}),
  })
}

const toMessages = (request: MessagesRequest) => {
  const conversation = openConversation()
  const system = typeof request.system === 'string' ? request.system : request.system?.map((block) => block.text).join('\n\n')
  if (system !== undefined && system !== '') conversation.system(system)
  for (const message of request.messages) {
    if (message.role === 'user') addUser(conversation, message.content)
    else if (message.role === 'assistant') addAssistant(conversation, message.content)
    else
      conversation.system(typeof message.content === 'string' ? message.content : message.content.map((block) => block.text).join('\n\n'))
  }
  return conversation.messages()
}

/** Results of tools are turns of their own in a chat, and stand before whatever the user says beside them. */
const addUser = (conversation: Conversation, content: UserContent): void => {
  if (typeof content === 'string') return conversation.user([{ text: content }])
  for (const block of content) {
    if (block.type !== 'tool_result') continue
    const said = typeof block.content === 'string' ? [{ text: block.content }] : (block.content ?? []).map(toSaid)
    const text = textOf(said)
    conversation.result(block.tool_use_id, block.is_error === true ? `Error: ${text}` : text, picturesOf(said))
  }
  const said = content.filter((block): block is Shown => block.type !== 'tool_result').map(toSaid)
  if (said.length > 0 || content.length === 0) conversation.user(said)
}

const addAssistant = (conversation: Conversation, content: AssistantContent): void => {
  if (typeof content === 'string') return conversation.assistant(content)
  const text = content.map((block) => (block.type === 'text' ? block.text : '')).join('')
  const calls = content.filter((block) => block.type === 'tool_use')
  if (text !== '' || calls.length === 0) conversation.assistant(text)
  for (const call of calls) conversation.call(call.id, call.name, JSON.stringify(call.input))
}

const toSaid = (block: Shown): Said => {
  if (block.type === 'text') return { text: block.text }
  if (block.type === 'document') {
    const title = typeof block.title === 'string' ? `${block.title}\n\n` : ''
    return { text: `${title}${block.source.data}` }
  }
  const { source } = block
  return { picture: { url: source.type === 'url' ? source.url : `data:${source.media_type};base64,${source.data}` } }
}

const toToolChoice = (choice: MessagesRequest['tool_choice']): unknown => {
  if (choice === undefined || choice === null) return undefined
  if (choice.type === 'tool') return { type: 'function', function: { name: choice.name } }
  return choice.type === 'any' ? 'required' : choice.type
}

/** Budgets become the nearest of three efforts: engines have no budgets, and chat has no numbers. */
const LOW_BUDGET_TOKENS = 4_096
const MEDIUM_BUDGET_TOKENS = 16_384

const toEffort = (request: MessagesRequest): string | undefined => {
  const { thinking, output_config: output } = request
  if (thinking?.type === 'disabled') return 'none'
  if (typeof output?.effort === 'string') return output.effort
  if (thinking?.type !== 'enabled') return undefined
  if (thinking.budget_tokens <= LOW_BUDGET_TOKENS) return 'low'
  return thinking.budget_tokens <= MEDIUM_BUDGET_TOKENS ? 'medium' : 'high'
}

const toResponseFormat = (request: MessagesRequest): unknown => {
  const format = request.output_config?.format
  return format === undefined || format === null
    ? undefined
    : { type: 'json_schema', json_schema: { name: 'answer', schema: format.schema, strict: true } }
}
