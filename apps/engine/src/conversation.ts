import type { ChatModel, Loaded } from './llama/model.ts'
import { type ChatTemplate, TemplateError } from './llama/template.ts'
import { refuseFarTooLong } from './plan.ts'
import { badRequest, fieldInvalid, no, type Outcome, yes } from './refusal.ts'
import type { Message, Tool } from './schema.ts'

export type Conversation = {
  readonly messages: readonly Message[]
  readonly tools: readonly Tool[] | undefined
  readonly templateValues: Readonly<Record<string, unknown>> | undefined
  readonly reasoningEffort: string | undefined
  readonly addGenerationPrompt: boolean
}

export type Prompt = { readonly tokens: number[]; readonly rendered: string; readonly template: ChatTemplate }

const textOf = (content: Message['content'], field: string): Outcome<string> => {
  if (content === undefined) return yes('')
  if (typeof content === 'string') return yes(content)
  const texts: string[] = []
  for (const [index, part] of content.entries()) {
    const text = part['text']
    if (part.type !== 'text')
      return no(fieldInvalid(`${field}[${index}].type`, `this model takes text only, not ${JSON.stringify(part.type)}`))
    if (typeof text !== 'string') return no(fieldInvalid(`${field}[${index}].text`, 'expected string'))
    texts.push(text)
  }
  return yes(texts.join('\n'))
}

/** Templates want the arguments as an object; what is not one stays the text that it is. */
const argumentsOf = (text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}

const messageToTemplate = (message: Message, index: number): Outcome<Record<string, unknown>> => {
  const content = textOf(message.content, `messages[${index}].content`)
  if (!content.ok) return content
  return yes({
    role: message.role === 'developer' ? 'system' : message.role,
    content: content.value,
    ...(message.name === undefined ? {} : { name: message.name }),
    ...(message.tool_call_id === undefined ? {} : { tool_call_id: message.tool_call_id }),
    ...(message.tool_calls === undefined || message.tool_calls.length === 0
      ? {}
      : {
          tool_calls: message.tool_calls.map((call) => ({
            ...(call.id === undefined ? {} : { id: call.id }),
            type: 'function',
            function: { name: call.function.name, arguments: argumentsOf(call.function.arguments ?? '{}') },
          })),
        }),
  })
}

/** Writes a conversation as the model was trained to read it, and as tokens. */
export const renderConversation = (chat: ChatModel, loaded: Loaded, conversation: Conversation): Outcome<Prompt> => {
  const tools = conversation.tools === undefined || conversation.tools.length === 0 ? null : conversation.tools
  const template = tools !== null && chat.toolTemplate !== undefined ? chat.toolTemplate : chat.template
  if (template === undefined)
    return no(badRequest("The model's file has no chat template that can be used; /v1/completions takes plain text."))

  const { vocabulary, contextTokens } = loaded
  // Templates write these into the prompt, too, and take longer for them than a tokenizer for text.
  const beside =
    refuseFarTooLong(JSON.stringify(tools), contextTokens, 'tools') ??
    refuseFarTooLong(JSON.stringify(conversation.templateValues ?? null), contextTokens, 'chat_template_kwargs')
  if (beside !== undefined) return no(beside)

  const messages: Record<string, unknown>[] = []
  for (const [index, message] of conversation.messages.entries()) {
    const one = messageToTemplate(message, index)
    if (!one.ok) return one
    messages.push(one.value)
  }

  const guard = vocabulary.guard()
  const effort = conversation.reasoningEffort
  try {
    const rendered = template.render({
      messages: guard.mark(messages),
      tools: guard.mark(tools),
      add_generation_prompt: conversation.addGenerationPrompt,
      ...chat.templateValues,
      // Both ways in which templates ask for it: a switch, and a degree. Those that know neither ignore them.
      ...(effort === undefined ? {} : { enable_thinking: effort !== 'none', ...(effort === 'none' ? {} : { reasoning_effort: effort }) }),
      ...conversation.templateValues,
    })
    const tooLong = refuseFarTooLong(rendered, contextTokens, 'messages')
    if (tooLong !== undefined) return no(tooLong)
    const tokens = guard.tokenize(rendered)
    const { beginning } = vocabulary
    if (beginning !== undefined && tokens[0] !== beginning) tokens.unshift(beginning)
    return yes({ tokens, rendered, template })
  } catch (error) {
    if (error instanceof TemplateError) return no(badRequest(error.message, 'messages'))
    throw error
  }
}
