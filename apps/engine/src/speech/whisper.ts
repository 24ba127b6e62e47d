import { readdir, readFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { deflateSync } from 'node:zlib'
import type { LogitsProcessor, PreTrainedTokenizer, StoppingCriteria, Tensor } from '@huggingface/transformers'
import { z } from 'zod'
import { SPEECH_RATE } from '../audio/pcm.ts'
import { forbid, logSumExp, type Vocabulary } from './rules.ts'
import { readWindow } from './segments.ts'

/** A stretch of speech in the words of OpenAI's `verbose_json`; times are seconds of the file. */
export type Segment = {
  readonly start: number
  readonly end: number
  readonly text: string
  readonly tokens: readonly number[]
  readonly temperature: number
  readonly avg_logprob: number
  readonly compression_ratio: number
  readonly no_speech_prob: number
}

/** How a file is to be written down. `language` is a code that the model knows. */
export type Manner = { readonly language: string | undefined; readonly prompt: string; readonly temperature: number }

export type Whisper = {
  /** Codes of the languages it can be told; empty for a model that knows one. */
  readonly languages: readonly string[]
  /**
   * Writes down at most half a minute. Gives the segments, their times from the beginning of the window, and how much of it is done
   * with. Undefined when it was broken off.
   */
  writeWindow(
    samples: Float32Array,
    manner: Manner,
    isOver: () => boolean,
  ): Promise<{ segments: Segment[]; doneSeconds: number; language: string | undefined } | undefined>
}

/** The optional packages are not there. */
const NOT_INSTALLED =
  'Speech is not installed: run "npm install @huggingface/transformers@4.3.1 onnxruntime-node@1.30.0" beside the engine, or install without --omit=optional.'

const importTransformers = async () => {
  try {
    return await import('@huggingface/transformers')
  } catch (error) {
    throw new Error(NOT_INSTALLED, { cause: error })
  }
}

/** What a file name says about its numbers, the most exact first. */
const PRECISIONS = [
  ['fp32', ''],
  ['fp16', '_fp16'],
  ['q8', '_quantized'],
  ['int8', '_int8'],
  ['uint8', '_uint8'],
  ['q4', '_q4'],
  ['q4f16', '_q4f16'],
  ['bnb4', '_bnb4'],
] as const

const PARTS = ['encoder_model', 'decoder_model_merged'] as const

const precisionsIn = async (directory: string) => {
  const files = new Set(await readdir(join(directory, 'onnx')).catch(() => []))
  const found = PARTS.map((part) => PRECISIONS.find(([, suffix]) => files.has(`${part}${suffix}.onnx`))?.[0])
  const [encoder, decoder] = found
  if (encoder === undefined || decoder === undefined) {
    throw new Error(`${directory} has no Whisper model in it: onnx/encoder_model*.onnx and onnx/decoder_model_merged*.onnx are wanted.`)
  }
  return { encoder_model: encoder, decoder_model_merged: decoder }
}

const Token = z.int().nonnegative()
/** What `generation_config.json` of a Whisper export has; the defaults are the reference's. */
const Generation = z.looseObject({
  decoder_start_token_id: Token,
  eos_token_id: Token,
  no_timestamps_token_id: Token,
  prev_sot_token_id: Token.optional(),
  is_multilingual: z.boolean().default(false),
  lang_to_id: z.record(z.string(), Token).default({}),
  task_to_id: z.record(z.string(), Token).default({}),
  suppress_tokens: z.array(z.int()).nullish(),
  begin_suppress_tokens: z.array(Token).nullish(),
  max_initial_timestamp_index: z.int().nullish(),
})
const Config = z.looseObject({ max_target_positions: z.int().positive().default(448) })

const readJson = async <T>(schema: z.ZodType<T>, path: string): Promise<T> => {
  const text = await readFile(path, 'utf8')
  const read = schema.safeParse(JSON.parse(text))
  if (!read.success) throw new Error(`${path} is not what a Whisper model has: ${z.prettifyError(read.error)}`)
  return read.data
}

// The thresholds of Whisper's reference: likely silence, and words that the model itself does not believe.
const SILENCE_PROBABILITY = 0.6
const SILENCE_LOGPROB = -1

/** The model of transformers.js as far as we use it. Two members are its own affair, which is why its version is pinned and this is the only module that knows. */
type Internal = {
  forward_params: string[]
  _prepare_encoder_decoder_kwargs_for_generation(parts: object): Promise<{ encoder_outputs: Tensor }>
}

/**
 * Loads a Whisper model in ONNX form from a directory, and from nowhere else. ONNX Runtime computes synchronously, so this belongs in a thread
 * that nobody else waits for.
 */
export const loadWhisper = async (directory: string, threads: number): Promise<Whisper> => {
  const dtype = await precisionsIn(directory)
  const generation = await readJson(Generation, join(directory, 'generation_config.json'))
  const config = await readJson(Config, join(directory, 'config.json'))
  const transformers = await importTransformers()
  transformers.env.allowRemoteModels = false
  transformers.env.allowLocalModels = true
  transformers.env.useFSCache = false
  transformers.env.localModelPath = `${dirname(directory)}/`
  const name = basename(directory)
  const tokenizer: PreTrainedTokenizer = await transformers.AutoTokenizer.from_pretrained(name)
  const features = await transformers.AutoFeatureExtractor.from_pretrained(name)
  const model = (await transformers.WhisperForConditionalGeneration.from_pretrained(name, {
    dtype,
    device: 'cpu',
    session_options: { intraOpNumThreads: threads },
  })) as unknown as Internal
  // So that one pass of the encoder serves language, silence and text.
  model.forward_params = [...model.forward_params, 'encoder_outputs']

  const firstTimestamp = generation.no_timestamps_token_id + 1
  const vocabulary: Vocabulary = {
    end: generation.eos_token_id,
    noTimestamps: generation.no_timestamps_token_id,
    firstTimestamp,
    suppressed: (generation.suppress_tokens ?? []).filter((token) => token >= 0),
    suppressedAtFirst: generation.begin_suppress_tokens ?? [],
    maxInitialTimestamp: generation.max_initial_timestamp_index ?? 50,
  }
  // <|nospeech|>, once called <|nocaptions|>, stands before <|notimestamps|> in every Whisper vocabulary.
  const noSpeech = generation.no_timestamps_token_id - 1
  const maxTokens = Math.floor(config.max_target_positions / 2)
  const languages = new Map(Object.entries(generation.lang_to_id).map(([token, id]) => [token.replaceAll(/[<|>]/g, ''), id]))
  const textOf = (tokens: readonly number[]): string => {
    const words = tokens.filter((token) => token < generation.eos_token_id)
    return words.length === 0 ? '' : tokenizer.decode(words, { skip_special_tokens: true })
  }

  /** Tokens in the order of Whisper's decoder. `look` sees the scores before each token and may change them; it says when to stop behind one. */
  const generate = async (
    encoded: { input_features: Tensor; encoder_outputs: Tensor },
    start: readonly number[],
    options: { max: number; temperature: number },
    look: { before(scores: Float32Array, sampled: readonly number[]): void; behind(token: number): boolean },
  ): Promise<number[]> => {
    const sampledOf = (ids: bigint[][]): number[] => (ids[0] ?? []).slice(start.length).map(Number)
    const processors = new transformers.LogitsProcessorList()
    const before = (ids: bigint[][], logits: Tensor): Tensor => {
      look.before(logits.data as Float32Array, sampledOf(ids))
      return logits
    }
    processors.push(before as unknown as LogitsProcessor) // a list calls what it holds, whether or not it is of that class
    const criteria = new transformers.StoppingCriteriaList()
    const behind = (ids: bigint[][]): boolean[] => [look.behind(Number(ids[0]?.at(-1)))]
    criteria.push(behind as unknown as StoppingCriteria)
    // Not Whisper's own: that one loops over a file by itself and forgets who may stop it.
    const base = transformers.PreTrainedModel.prototype.generate as (this: Internal, parts: object) => Promise<unknown>
    const sequences = (await base.call(model, {
      inputs: encoded.input_features,
      encoder_outputs: encoded.encoder_outputs,
      decoder_input_ids: [...start],
      max_new_tokens: options.max,
      do_sample: options.temperature > 0,
      temperature: options.temperature > 0 ? options.temperature : 1,
      top_k: 0,
      // Ours, in `rules.ts`: otherwise the library would apply its own on top.
      suppress_tokens: null,
      begin_suppress_tokens: null,
      forced_decoder_ids: null,
      logits_processor: processors,
      stopping_criteria: criteria,
    })) as Tensor
    const ids = (sequences.tolist() as bigint[][])[0] ?? []
    return ids.slice(start.length).map(Number)
  }

  /** The language that the model hears, and whether it hears anything: both are told by the scores behind the very first token. */
  const listen = async (
    encoded: { input_features: Tensor; encoder_outputs: Tensor },
    chosen: string | undefined,
  ): Promise<{ language: string; silence: number }> => {
    let silence = 0
    let language = chosen ?? 'en'
    await generate(
      encoded,
      [generation.decoder_start_token_id],
      { max: 1, temperature: 0 },
      {
        before(scores) {
          silence = Math.exp((scores[noSpeech] ?? Number.NEGATIVE_INFINITY) - logSumExp(scores))
          if (chosen !== undefined) return
          let best = Number.NEGATIVE_INFINITY
          for (const [code, token] of languages) {
            const score = scores[token] ?? Number.NEGATIVE_INFINITY
            if (score <= best) continue
            best = score
            language = code
          }
        },
        behind: () => true,
      },
    )
    return { language, silence }
  }

  return {
    languages: generation.is_multilingual ? [...languages.keys()] : [],

    async writeWindow(samples, manner, isOver) {
      const { input_features } = (await features(samples)) as { input_features: Tensor }
      if (isOver()) return undefined
      const { encoder_outputs } = await model._prepare_encoder_decoder_kwargs_for_generation({
        inputs_tensor: input_features,
        model_inputs: { input_features },
        model_input_name: 'input_features',
        generation_config: { guidance_scale: null },
      })
      await breath()
      if (isOver()) return undefined
      const encoded = { input_features, encoder_outputs }
      const heard = generation.is_multilingual ? await listen(encoded, manner.language) : undefined

      const start = [generation.decoder_start_token_id]
      if (heard !== undefined) start.push(languages.get(heard.language) ?? 0, generation.task_to_id['transcribe'] ?? 0)
      if (manner.prompt !== '' && generation.prev_sot_token_id !== undefined) {
        const tokens = tokenizer.encode(` ${manner.prompt.trim()}`, { add_special_tokens: false })
        // A control token that somebody writes into a prompt is no text.
        const words = tokens.filter((token) => token < generation.eos_token_id).slice(1 - maxTokens)
        start.unshift(generation.prev_sot_token_id, ...words)
      }

      let silence = heard?.silence ?? 0
      let scored: Float32Array = new Float32Array(0)
      let logprob = 0
      let count = 0
      const tokens = await generate(
        encoded,
        start,
        { max: maxTokens - 1, temperature: manner.temperature },
        {
          before(scores, sampled) {
            if (sampled.length === 0 && heard === undefined) {
              silence = Math.exp((scores[noSpeech] ?? Number.NEGATIVE_INFINITY) - logSumExp(scores))
            }
            forbid(scores, sampled, vocabulary)
            scored = scores.slice()
          },
          behind(token) {
            logprob += (scored[token] ?? 0) - logSumExp(scored)
            count += 1
            return isOver()
          },
        },
      )
      if (isOver()) return undefined
      if (tokens.at(-1) === generation.eos_token_id) tokens.pop()

      const seconds = samples.length / SPEECH_RATE
      const averageLogprob = count === 0 ? 0 : logprob / count
      const { stretches, doneSeconds } = readWindow(tokens, firstTimestamp, seconds)
      const silent = silence > SILENCE_PROBABILITY && averageLogprob < SILENCE_LOGPROB
      const segments = silent
        ? []
        : stretches.flatMap(({ start: from, end, tokens: part }) => {
            const text = textOf(part)
            if (text.trim() === '') return []
            return [
              {
                start: roundMs(from),
                end: roundMs(end),
                text,
                tokens: part,
                temperature: manner.temperature,
                avg_logprob: averageLogprob,
                compression_ratio: Buffer.byteLength(text) / deflateSync(text).length,
                no_speech_prob: silence,
              },
            ]
          })
      return { segments, doneSeconds: silent ? seconds : doneSeconds, language: heard?.language }
    },
  }
}

/** Times are steps of 20 ms; the rest is what floating point adds. */
export const roundMs = (seconds: number): number => Math.round(seconds * 1000) / 1000

/** Lets messages in between two steps of the model, which do not wait for anything by themselves. */
const breath = (): Promise<void> => new Promise((resolve) => void setImmediate(resolve))
