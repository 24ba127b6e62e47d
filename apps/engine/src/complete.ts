import { type LlamaContextSequence, type LlamaGrammar, LlamaGrammarEvaluationState } from 'node-llama-cpp'
import { type Delta, openAnswer } from './answer.ts'
import type { Finished } from './counters.ts'
import type { Engine } from './exchange.ts'
import { generate, type Sampling, type TokenLogprob } from './llama/generate.ts'
import type { ChatModel } from './llama/model.ts'
import type { Lease } from './llama/slots.ts'
import { openText } from './llama/text.ts'
import type { ReasoningStyle } from './output/reasoning.ts'
import type { KnownTool, ToolFormat } from './output/tool-calls.ts'

/** All that decides an answer, read and checked. */
export type Plan = {
  readonly prompt: readonly number[]
  readonly maxTokens: number
  readonly ignoresEnd: boolean
  readonly sampling: Sampling
  readonly stops: readonly string[]
  readonly reasoning: ReasoningStyle | undefined
  readonly toolFormat: ToolFormat | undefined
  readonly tools: readonly KnownTool[]
  readonly grammar: LlamaGrammar | undefined
  readonly topLogprobs: number | undefined
}

export type Usage = {
  readonly prompt_tokens: number
  readonly completion_tokens: number
  readonly total_tokens: number
  readonly prompt_tokens_details: { readonly cached_tokens: number }
  readonly completion_tokens_details: { readonly reasoning_tokens: number }
}

type TokenText = { readonly token: string; readonly logprob: number; readonly bytes: readonly number[] | null }
export type LogprobEntry = TokenText & { readonly top_logprobs: readonly TokenText[] }

/** What one step gave. `usage` is as of this step. */
export type Piece = { readonly deltas: readonly Delta[]; readonly logprobs: readonly LogprobEntry[]; readonly usage: Usage }
export type Completed = {
  readonly finish: 'stop' | 'length' | 'aborted'
  readonly stopMatched: string | undefined
  readonly usage: Usage
}

/** Generates one answer on a leased sequence and hands it over piece by piece. `onPiece` must not wait. */
export const complete = async (
  engine: Engine,
  chat: ChatModel,
  lease: Lease<LlamaContextSequence>,
  plan: Plan,
  signal: AbortSignal,
  onPiece: (piece: Piece) => void,
): Promise<Completed> => {
  const { loaded, counters } = engine
  const { vocabulary, model } = loaded
  const answer = openAnswer(plan)
  const text = openText(vocabulary.detokenize, plan.prompt)
  // Tags of tools and reasoning are control tokens in some models; without such a reader a control token says nothing to anybody.
  const showsControl = plan.toolFormat !== undefined || plan.reasoning !== undefined

  let cachedTokens = 0
  let outputTokens = 0
  let reasoningTokens = 0
  const usage = (): Usage => ({
    prompt_tokens: plan.prompt.length,
    completion_tokens: outputTokens,
    total_tokens: plan.prompt.length + outputTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
    completion_tokens_details: { reasoning_tokens: reasoningTokens },
  })

  // An entry belongs to the answer as soon as a part of its text has passed the stops.
  const waiting: { start: number; entry: LogprobEntry }[] = []
  let produced = 0
  let passed = 0
  const describe = ({ token, logprob }: TokenLogprob): TokenText => {
    const spelled = vocabulary.detokenize([token], [])
    // A piece of a character has no text of its own, and so no bytes that we could tell.
    return { token: spelled, logprob, bytes: spelled.includes('\uFFFD') ? null : [...Buffer.from(spelled)] }
  }
  const ready = (): LogprobEntry[] => {
    const count = waiting.findIndex(({ start }) => start >= passed)
    return waiting.splice(0, count < 0 ? waiting.length : count).map(({ entry }) => entry)
  }

  const grammarState = plan.grammar === undefined ? undefined : new LlamaGrammarEvaluationState({ model, grammar: plan.grammar })
  // Counted however it ends, and before anybody hears that it has ended.
  let begun = false
  let ended: Finished = 'error'
  try {
    const result = await generate(loaded, chat, {
      lease,
      prompt: plan.prompt,
      sampling: plan.sampling,
      maxTokens: plan.maxTokens,
      ignoresEnd: plan.ignoresEnd,
      // What a model thinks is not bound to the form of its answer.
      grammar: grammarState === undefined ? undefined : () => (answer.isThinking() ? undefined : grammarState),
      topLogprobs: plan.topLogprobs,
      signal,
      onStart: (cached) => {
        cachedTokens = cached
        begun = true
      },
      onStep: (step) => {
        outputTokens += 1
        const silent = vocabulary.isEnd(step.token) || (!showsControl && vocabulary.isControl(step.token))
        const piece = silent ? '' : text.push(step.token)
        const wasThinking = answer.isThinking()
        const out = answer.push(piece)
        if (wasThinking || answer.isThinking()) reasoningTokens = outputTokens
        if (step.logprob !== undefined) {
          const top = step.top.map(describe)
          waiting.push({ start: produced, entry: { ...describe({ token: step.token, logprob: step.logprob }), top_logprobs: top } })
        }
        produced += piece.length
        passed += out.passed
        if (out.deltas.length > 0) onPiece({ deltas: out.deltas, logprobs: ready(), usage: usage() })
        return answer.matched() === undefined
      },
    })
    outputTokens = result.outputTokens

    if (result.ended !== 'aborted') {
      const tail = answer.push(text.end())
      const out = answer.end()
      passed += tail.passed + out.passed
      // The end token was made without text; nothing after the last text is left out but what lies behind a stop.
      if (answer.matched() === undefined) passed = Number.POSITIVE_INFINITY
      const deltas = [...tail.deltas, ...out.deltas]
      const logprobs = ready()
      if (deltas.length > 0 || logprobs.length > 0) onPiece({ deltas, logprobs, usage: usage() })
    }
    const finish = result.ended === 'aborted' ? 'aborted' : result.ended === 'limit' && answer.matched() === undefined ? 'length' : 'stop'
    ended = finish === 'aborted' ? 'abort' : finish
    return { finish, stopMatched: answer.matched(), usage: usage() }
  } finally {
    if (begun) counters.read(plan.prompt.length, cachedTokens)
    counters.wrote(outputTokens)
    counters.ended(ended)
  }
}
