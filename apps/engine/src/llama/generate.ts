import { type EvaluationPriority, type LlamaContextSequence, type LlamaGrammarEvaluationState, type Token, TokenBias } from 'node-llama-cpp'
import { sample, seededRandom } from '../sampling/sample.ts'
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
  /** An end token does not end the answer, only the limit does. */
  readonly ignoresEnd: boolean
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
  try {
    return await run(loaded, chat, generation)
  } catch (error) {
    generation.lease.spoil() // nobody knows what of the last batch is in its cache
    throw error
  }
}

const run = async (loaded: Loaded, chat: ChatModel, generation: Generation): Promise<Generated> => {
  const { lease, prompt, maxTokens, signal, onStep } = generation
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

    const tail = prompt.slice(at) as Token[]
    const source = sourceFor(loaded, generation, tail, evaluationPriority)
    try {
      while (true) {
        const step = await source.next()
        if (step === undefined) return finish('end')
        outputTokens += 1
        if (signal.aborted) return finish('aborted')
        if (!generation.ignoresEnd && loaded.vocabulary.isEnd(step.token)) return finish('end')
        if (!onStep(step)) return finish('stopped')
        if (outputTokens >= maxTokens) return finish('limit')
        if (batching.pause() !== undefined) await stand()
        if (signal.aborted) return finish('aborted')
      }
    } finally {
      await source.close()
    }
  } finally {
    batching.leave()
  }
}

type Source = { next(): Promise<Step | undefined>; close(): Promise<void> }

/** Without probabilities, and with a grammar, the library samples; with probabilities alone we do, from the raw logits it gives. */
const sourceFor = (loaded: Loaded, generation: Generation, tail: Token[], evaluationPriority: EvaluationPriority): Source =>
  generation.topLogprobs !== undefined && generation.grammar === undefined
    ? ownSource(generation, tail, evaluationPriority, generation.topLogprobs)
    : librarySource(loaded, generation, tail, evaluationPriority)

const LEAST_LOGPROB = -9999 // JSON has no infinity; vLLM's clients know this number for it

const librarySource = (loaded: Loaded, generation: Generation, tail: Token[], evaluationPriority: EvaluationPriority): Source => {
  const generated: Token[] = []
  // The probability of the token that was taken is all that can be had together with a grammar.
  const confidence = generation.topLogprobs !== undefined
  const iterator = generation.lease.sequence.evaluateWithMetadata(
    tail,
    { confidence } as { confidence: true }, // the field is read only when it was asked for
    {
      ...nativeSampling(loaded, generation.sampling, generated, generation.maxTokens),
      ...(generation.grammar === undefined ? {} : { grammarEvaluationState: generation.grammar }),
      evaluationPriority,
      yieldEogToken: true,
    },
  )
  return {
    next: async () => {
      const next = await iterator.next()
      if (next.done === true) return undefined
      const { token } = next.value
      generated.push(token)
      if (!confidence) return { token, logprob: undefined, top: [] }
      const logprob = Math.max(LEAST_LOGPROB, Math.log(next.value.confidence))
      return { token, logprob, top: generation.topLogprobs === 0 ? [] : [{ token, logprob }] }
    },
    close: async () => {
      await iterator.return()
    },
  }
}

// Below the 256 most probable tokens there is nothing that a sampler with sense would take.
const CANDIDATES = 256

const ownSource = (generation: Generation, tail: Token[], evaluationPriority: EvaluationPriority, topLogprobs: number): Source => {
  const { sampling, lease } = generation
  const random = seededRandom(sampling.seed)
  const seen = new Map<number, number>()
  const generateNext = {
    logits: { filter: { tokens: [...sampling.logitBias.keys()] as Token[], includeTop: CANDIDATES } },
    totalLogitWeight: true,
    options: { temperature: 0 }, // leaves the logits as the model gave them
  }
  let input = tail
  return {
    next: async () => {
      const last = input.length - 1
      const outputs = await lease.sequence.controlledEvaluate(
        input.map((token, index) => (index === last ? [token, { generateNext }] : token)),
        { evaluationPriority },
      )
      const { logits, totalLogitWeight } = outputs[last]?.next ?? {}
      if (logits === undefined || totalLogitWeight === undefined) throw new Error('the library gave no logits')
      const candidates = [...logits].map(([token, logit]) => ({ token: token as number, logit })).sort((a, b) => b.logit - a.logit)
      const greatest = candidates[0]?.logit ?? 0
      const logprobOf = (logit: number): number => Math.max(LEAST_LOGPROB, logit - greatest - Math.log(totalLogitWeight))
      const token = sample(candidates, { ...sampling, seen, random })
      seen.set(token, (seen.get(token) ?? 0) + 1)
      input = [token as Token]
      const taken = candidates.find((candidate) => candidate.token === token)
      return {
        token,
        logprob: taken === undefined ? LEAST_LOGPROB : logprobOf(taken.logit),
        top: candidates.slice(0, topLogprobs).map((candidate) => ({ token: candidate.token, logprob: logprobOf(candidate.logit) })),
      }
    },
    close: async () => {},
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
