import { type EvaluationPriority, type LlamaContextSequence, type LlamaGrammarEvaluationState, type Token, TokenBias } from 'node-llama-cpp'
import type { ChatModel, Loaded } from './model.ts'
import { commonPrefix, type Lease } from './slots.ts'

// A prompt is computed in pieces, so that an abort is seen between them.
const PIECE_TOKENS = 256

export type Sampling = {
  readonly temperature: number
  readonly topP: number
  readonly topK: number
  readonly minP: number
  readonly repetitionPenalty: number
  readonly presencePenalty: number
  readonly frequencyPenalty: number
  readonly logitBias: ReadonlyMap<number, number>
  /** 32 bits. */
  readonly seed: number
}

export type TokenLogprob = { readonly token: number; readonly logprob: number }
/** One generated token that is not the end token. */
export type Step = { readonly token: number; readonly logprob: number | undefined; readonly top: readonly TokenLogprob[] }

export type Generation = {
  readonly lease: Lease<LlamaContextSequence>
  readonly prompt: readonly number[]
  readonly sampling: Sampling
  readonly maxTokens: number
  readonly grammar: (() => LlamaGrammarEvaluationState | undefined) | undefined
  /** How many of the most probable tokens to tell with each token; undefined for no probabilities at all. */
  readonly topLogprobs: number | undefined
  readonly signal: AbortSignal
  /** Called before anything is computed, with how many tokens of the prompt need not be. */
  readonly onStart: (cachedTokens: number) => void
  /** Called with every token, between two steps of all sequences: it must not wait. False ends the answer. */
  readonly onStep: (step: Step) => boolean
}

export type Generated = {
  /** All tokens that the model made, the end token among them. */
  readonly outputTokens: number
  readonly ended: 'end' | 'limit' | 'stopped' | 'aborted'
}

/** Runs one prompt on a leased sequence until the model ends, the limit is reached, `onStep` has enough or the caller leaves. */
export const generate = async (loaded: Loaded, chat: ChatModel, generation: Generation): Promise<Generated> => {
  const { lease, prompt, sampling, maxTokens, signal, onStep } = generation
  const { sequence } = lease
  const { batching } = chat
  const evaluationPriority = (lease.index + 1) as EvaluationPriority // the order within a batch; the library only compares it
  let outputTokens = 0

  // What is cached beyond the common beginning is cut off; the last token is computed always, because its logits are needed.
  const kept = lease.reuse ? Math.min(commonPrefix(sequence.contextTokens, prompt), prompt.length - 1) : 0
  if (sequence.nextTokenIndex > kept) {
    await batching.whileStill(() => sequence.adaptStateToTokens(prompt.slice(0, kept) as Token[], false))
  }
  const cachedTokens = sequence.nextTokenIndex // not always `kept`: a sliding window cannot be cut back everywhere
  generation.onStart(cachedTokens)
  const finish = (ended: Generated['ended']): Generated => ({ outputTokens, ended })

  batching.enter()
  const stand = async (): Promise<void> => {
    for (let pause = batching.pause(); pause !== undefined; pause = batching.pause()) {
      batching.leave()
      try {
        await pause
      } finally {
        batching.enter()
      }
    }
  }
  try {
    let at = cachedTokens
    while (prompt.length - at > PIECE_TOKENS) {
      if (batching.pause() !== undefined) await stand()
      if (signal.aborted) return finish('aborted')
      await sequence.evaluateWithoutGeneratingNewTokens(prompt.slice(at, at + PIECE_TOKENS) as Token[], { evaluationPriority })
      at += PIECE_TOKENS
    }
    if (batching.pause() !== undefined) await stand()
    if (signal.aborted) return finish('aborted')

    const generated: Token[] = []
    const iterator = sequence.evaluateWithMetadata(
      prompt.slice(at) as Token[],
      {},
      {
        ...nativeSampling(loaded, sampling, generated, maxTokens),
        ...(generation.grammar === undefined ? {} : { grammarEvaluationState: generation.grammar }),
        evaluationPriority,
        yieldEogToken: true,
      },
    )
    try {
      while (true) {
        const next = await iterator.next()
        if (next.done === true) return finish('end')
        const { token } = next.value
        outputTokens += 1
        if (signal.aborted) return finish('aborted')
        if (loaded.vocabulary.isEnd(token)) return finish('end')
        generated.push(token)
        if (!onStep({ token, logprob: undefined, top: [] })) return finish('stopped')
        if (outputTokens >= maxTokens) return finish('limit')
        if (batching.pause() !== undefined) await stand()
        if (signal.aborted) return finish('aborted')
      }
    } finally {
      await iterator.return()
    }
  } finally {
    batching.leave()
  }
}

const nativeSampling = (loaded: Loaded, sampling: Sampling, generated: Token[], maxTokens: number) => {
  const penalizes = sampling.repetitionPenalty !== 1 || sampling.presencePenalty !== 0 || sampling.frequencyPenalty !== 0
  const bias = new TokenBias(loaded.model.tokenizer)
  for (const [token, logit] of sampling.logitBias) bias.set(token as Token, { logit })
  // All of them always: the library's own defaults cut to 40 tokens and 0.95.
  return {
    temperature: sampling.temperature,
    topP: sampling.topP,
    topK: sampling.topK,
    minP: sampling.minP,
    seed: sampling.seed,
    ...(penalizes
      ? {
          repeatPenalty: {
            punishTokens: () => generated,
            maxPunishTokens: maxTokens,
            penalty: sampling.repetitionPenalty,
            presencePenalty: sampling.presencePenalty,
            frequencyPenalty: sampling.frequencyPenalty,
          },
        }
      : {}),
    ...(sampling.logitBias.size > 0 ? { tokenBias: bias } : {}),
  }
}
