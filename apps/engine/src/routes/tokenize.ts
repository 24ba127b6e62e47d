import { renderConversation } from '../conversation.ts'
import type { Engine, Exchange } from '../exchange.ts'
import { refuseFarTooLong } from '../plan.ts'
import { badRequest, fieldInvalid, no, type Outcome, yes } from '../refusal.ts'
import { DetokenizeRequest, readBody, TokenizeRequest } from '../schema.ts'

const readTokens = (engine: Engine, request: TokenizeRequest): Outcome<number[]> => {
  const { vocabulary, contextTokens, serves } = engine.loaded
  if ('prompt' in request && typeof request.prompt === 'string') {
    const tooLong = refuseFarTooLong(request.prompt, contextTokens, 'prompt')
    if (tooLong !== undefined) return no(tooLong)
    const tokens = vocabulary.tokenize(request.prompt, true)
    if (request['add_special_tokens'] === false) return yes(tokens)
    const { beginning, ending } = vocabulary
    if (beginning !== undefined && tokens[0] !== beginning) tokens.unshift(beginning)
    if (ending !== undefined && tokens.at(-1) !== ending) tokens.push(ending)
    return yes(tokens)
  }
  if (!('messages' in request) || !Array.isArray(request.messages))
    return no(badRequest('Either "prompt" or "messages" must be given.', 'prompt'))
  if (serves.type !== 'chat') return no(fieldInvalid('messages', `a model of type ${serves.type} has no conversations`))
  const conversation = request as Extract<TokenizeRequest, { add_generation_prompt: boolean | undefined }>
  const prompt = renderConversation(serves, engine.loaded, {
    messages: conversation.messages,
    tools: conversation.tools,
    templateValues: conversation.chat_template_kwargs,
    reasoningEffort: conversation.reasoning_effort,
    addGenerationPrompt: conversation.add_generation_prompt ?? true,
  })
  return prompt.ok ? yes(prompt.value.tokens) : prompt
}

/** `POST /tokenize`, in vLLM's shape. */
export const tokenize = async (engine: Engine, exchange: Exchange): Promise<void> => {
  const request = readBody(TokenizeRequest, exchange.body)
  if (!request.ok) return exchange.refuse(request.refusal)
  const tokens = readTokens(engine, request.value)
  if (!tokens.ok) return exchange.refuse(tokens.refusal)
  const { vocabulary, contextTokens } = engine.loaded
  exchange.answer({
    count: tokens.value.length,
    max_model_len: contextTokens,
    tokens: tokens.value,
    token_strs: request.value.return_token_strs === true ? tokens.value.map((token) => vocabulary.detokenize([token], [])) : null,
  })
}

/** `POST /detokenize`, in vLLM's shape. */
export const detokenize = async (engine: Engine, exchange: Exchange): Promise<void> => {
  const request = readBody(DetokenizeRequest, exchange.body)
  if (!request.ok) return exchange.refuse(request.refusal)
  const { vocabulary } = engine.loaded
  const strange = request.value.tokens.find((token) => token >= vocabulary.size)
  if (strange !== undefined) return exchange.refuse(fieldInvalid('tokens', `there is no token ${strange}`))
  exchange.answer({ prompt: vocabulary.detokenize(request.value.tokens, []) })
}
