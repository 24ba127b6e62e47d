import { Usage } from '@parvis/wire/openai/usage'
import type { Refusal } from '../kit/refusal.ts'
import type { Counted, Counts, Ended } from '../usage/event.ts'
import type { Request } from './endpoints/endpoint.ts'

/** How an answer stands when no more of it will come. */
export type Ending = {
  readonly counts: Counts
  readonly counted: Counted
  readonly ended: Ended
  readonly status: number
  /** What the engine has said, where it has not counted it and it was held. */
  readonly words?: (() => readonly string[] | undefined) | undefined
  /** Sends what was held back. */
  finish(): void
}

/** What becomes of the bytes of a good answer: passed on at once, or collected. */
export type Answer = {
  /** `wait`: the client does not keep up. `done`: this was the last that matters. Otherwise go on, unless there is a verdict. */
  data(chunk: Buffer): 'wait' | 'done' | Verdict | undefined
  /** Some of it is on its way to the client, and its engine has counted the input: nobody needs the bytes of the request any more. A stream only. */
  isCounted?(): boolean
  /** A sign of life for a client that waits; a stream only. */
  ping?(): void
  /** A budget has run out: the answer ends here, as one that has reached its limit. Undefined where it is at its end anyway. */
  exhausted?(): Verdict | undefined
  /** The engine has finished in good order. */
  end(): Verdict
  /** No more will come: the client left, the time is up, or the engine failed. */
  broken(how: Exclude<Ended, 'complete'>, refusal: Refusal): Verdict
}

/**
 * Either there is something to record, or nothing has reached the client and it can be told no.
 * `log` says what was odd, without a word of content. `elsewhere`: another engine may do better. `idle`: this one did not work on the request,
 * so nothing of it is recorded. `ours`: it is nothing that the engine has done.
 */
export type Verdict =
  | { readonly ending: Ending; readonly log?: string }
  | { readonly refusal: Refusal; readonly log?: string; readonly elsewhere?: boolean; readonly idle?: boolean; readonly ours?: boolean }

/** There is no room of ours for an answer. Its engine has made it and is to blame for nothing. */
export const NO_ROOM: Verdict = {
  refusal: { code: 'busy', reason: 'too many large answers are in flight', retryAfterMs: 1_000 },
  log: 'No room in memory for the answer of an engine',
  ours: true,
}

export const NO_COUNTS: Counts = { input: 0, cachedInput: 0, output: 0, reasoning: 0, audioInput: 0, audioMs: 0, images: 0, pages: 0 }

/**
 * What is known where the engine gave no count: what was delivered, and the input as it was estimated to be admitted. An engine that
 * has a request has read it, so it is never counted as nothing.
 */
export const countedByUs = (request: Pick<Request, 'estimate'>, output: number): Pick<Ending, 'counts' | 'counted'> => {
  const counts = toTokens(request.estimate.inputTokens, 0, output, 0, 0)
  return { counts, counted: counts.input + output > 0 ? 'delivered' : 'none' }
}

/** Field by field: usage/event.ts says why. */
const toTokens = (input: number, cachedInput: number, output: number, reasoning: number, audioInput: number): Counts => ({
  input,
  cachedInput,
  output,
  reasoning,
  audioInput,
  audioMs: 0,
  images: 0,
  pages: 0,
})

/** nginx's number for a client that was gone before the answer began; it never goes over the wire. */
export const LEFT_STATUS = 499

/** What a client was told whose answer took too long (data-plane.md 2.5); no dialect says it otherwise. */
export const LATE_STATUS = 504

/** An engine's own count, where it makes sense. Parts are cut to the whole: a bill must not go below zero. */
export const toCounts = (usage: unknown): Counts | undefined => {
  const read = Usage.safeParse(usage)
  if (!read.success) return undefined
  const { data } = read
  const input = data.prompt_tokens
  const output = data.completion_tokens ?? 0
  const cached = Math.min(data.prompt_tokens_details?.cached_tokens ?? 0, input)
  const reasoning = Math.min(data.completion_tokens_details?.reasoning_tokens ?? 0, output)
  const audio = Math.min(data.prompt_tokens_details?.audio_tokens ?? 0, input)
  return toTokens(input, cached, output, reasoning, audio)
}
