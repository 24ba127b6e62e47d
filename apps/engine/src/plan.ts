import { randomInt } from 'node:crypto'
import type { EngineOptions } from './command-line.ts'
import type { Sampling } from './llama/generate.ts'
import type { SamplingDefaults } from './llama/model.ts'
import { contextExceeded, fieldInvalid, no, type Outcome, outputLimit, type Refusal, yes } from './refusal.ts'
import type { ChatRequest, CompletionRequest } from './schema.ts'

// llama.cpp reads the greatest 32-bit number as "take a random seed".
const SEEDS = 2 ** 32 - 1

const remainder = (value: number, by: number): number => ((value % by) + by) % by

/** What the request asks of sampling, filled up with what the model's makers recommend. */
export const readSampling = (
  request: ChatRequest | CompletionRequest,
  defaults: SamplingDefaults,
  vocabularySize: number,
): Outcome<Sampling> => {
  const logitBias = new Map<number, number>()
  for (const [token, bias] of Object.entries(request.logit_bias ?? {})) {
    if (Number(token) >= vocabularySize) return no(fieldInvalid('logit_bias', `there is no token ${token}`))
    logitBias.set(Number(token), bias)
  }
  return yes({
    temperature: request.temperature ?? defaults.temperature,
    topP: request.top_p ?? defaults.topP,
    topK: Math.max(0, request.top_k ?? defaults.topK), // -1 is "all" to vLLM's clients, 0 to llama.cpp
    minP: request.min_p ?? defaults.minP,
    repetitionPenalty: request.repetition_penalty ?? 1,
    presencePenalty: request.presence_penalty ?? 0,
    frequencyPenalty: request.frequency_penalty ?? 0,
    logitBias,
    seed: request.seed === undefined ? randomInt(SEEDS) : remainder(request.seed, SEEDS),
  })
}

export const readStops = (stop: string | readonly string[] | undefined): readonly string[] =>
  (typeof stop === 'string' ? [stop] : (stop ?? [])).filter((text) => text !== '')

/** No vocabulary has a longer token; the longest are runs of 128 spaces. */
const TOKEN_CHARACTERS = 256

/**
 * A text that cannot fit whatever its tokens are. To tokenize 20 MB takes seconds, in which all other answers of the model stand still,
 * and so it is not done only to say by how much a text is too long.
 */
export const refuseFarTooLong = (text: string, contextTokens: number, field: string): Refusal | undefined => {
  const fewest = Math.ceil(text.length / TOKEN_CHARACTERS)
  return fewest > contextTokens ? contextExceeded(`at least ${fewest}`, contextTokens, field) : undefined
}

/**
 * How many tokens the answer may have. Checked before anything is computed: the library would silently cut the beginning
 * of a prompt that is too long.
 */
export const readMaxTokens = (
  asked: number | undefined,
  field: string,
  promptTokens: number,
  contextTokens: number,
  options: EngineOptions,
): Outcome<number> => {
  if (asked !== undefined && asked > options.maxOutputTokens) return no(outputLimit(asked, options.maxOutputTokens, field))
  const needed = promptTokens + (asked ?? 1)
  if (needed > contextTokens) return no(contextExceeded(needed, contextTokens, asked === undefined ? 'messages' : field))
  return yes(asked ?? Math.min(options.maxOutputTokens, contextTokens - promptTokens))
}
