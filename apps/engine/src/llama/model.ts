import { readFile, stat } from 'node:fs/promises'
import {
  GgufInsights,
  getLlama,
  type Llama,
  type LlamaContext,
  type LlamaContextSequence,
  type LlamaEmbeddingContext,
  LlamaLogLevel,
  type LlamaModel,
  type LlamaRankingContext,
  readGgufFileInfo,
  type Token,
} from 'node-llama-cpp'
import { DEFAULT_CONTEXT, type EngineOptions } from '../command-line.ts'
import type { Log } from '../log.ts'
import { type Batching, openBatching } from './batching.ts'
import { fitMemory } from './memory.ts'
import { openNativeLog } from './native-log.ts'
import { openGuard } from './prompt.ts'
import { openSlots, type Slots } from './slots.ts'
import { type ChatTemplate, openTemplate } from './template.ts'

/** Why a model cannot be served: a sentence for the operator. */
export class LoadError extends Error {}

const BATCH_TOKENS = 512
const MEGABYTE = 1024 * 1024

/** Sampling that the model's makers recommend, where the file says so. */
export type SamplingDefaults = { readonly temperature: number; readonly topP: number; readonly topK: number; readonly minP: number }

export type Vocabulary = {
  /** `continues`: the text does not stand at the beginning, so that no space is put before it. */
  readonly tokenize: (text: string, specialTokens: boolean, continues?: boolean) => number[]
  /** Special tokens are written out. `recent` are the tokens before, for the space between words. */
  readonly detokenize: (tokens: readonly number[], recent: readonly number[]) => string
  readonly isEnd: (token: number) => boolean
  readonly isControl: (token: number) => boolean
  readonly size: number
  /** The token that every prompt begins with, if the model has one. */
  readonly beginning: number | undefined
  /** The token that an encoder's input ends with. */
  readonly ending: number | undefined
  readonly guard: ReturnType<typeof openGuard>
}

export type Loaded = {
  readonly llama: Llama
  readonly model: LlamaModel
  readonly contextTokens: number
  readonly sequences: number
  readonly vocabulary: Vocabulary
  readonly serves: Serves
}

export type ChatModel = {
  readonly type: 'chat'
  readonly context: LlamaContext
  readonly slots: Slots<LlamaContextSequence>
  readonly batching: Batching
  readonly template: ChatTemplate | undefined
  /** Some files have another template for conversations with tools. */
  readonly toolTemplate: ChatTemplate | undefined
  readonly templateValues: { readonly bos_token: string; readonly eos_token: string }
  readonly defaults: SamplingDefaults
}
export type EmbeddingModel = { readonly type: 'embedding'; readonly context: LlamaEmbeddingContext; readonly slots: Slots<undefined> }
export type RerankModel = { readonly type: 'rerank'; readonly context: LlamaRankingContext; readonly slots: Slots<undefined> }
export type Serves = ChatModel | EmbeddingModel | RerankModel

const openVocabulary = (model: LlamaModel): Vocabulary => {
  const control = new Set<number>()
  const controlTexts: string[] = []
  let size = 0
  for (const token of model.iterateAllTokens()) {
    size += 1
    if (!model.getTokenAttributes(token).control) continue
    control.add(token)
    controlTexts.push(model.detokenize([token], true))
  }
  const tokenize = (text: string, specialTokens: boolean, continues = false): number[] =>
    continues ? model.tokenize(text, specialTokens, 'trimLeadingSpace') : model.tokenize(text, specialTokens)
  // Byte-level vocabularies write their spaces out, so that what comes before does not matter.
  const spaceDepends = model.vocabularyType !== 'bpe'
  const wordPiece = model.vocabularyType === 'wpm'
  return {
    tokenize,
    detokenize: (tokens, recent) => model.detokenize(tokens as Token[], true, spaceDepends ? (recent as Token[]) : undefined),
    isEnd: (token) => model.isEogToken(token as Token),
    isControl: (token) => control.has(token),
    size,
    // As llama.cpp does it: an encoder of the BERT kind has both always, the others as the file says.
    beginning: (wordPiece || model.tokens.shouldPrependBosToken ? model.tokens.bos : null) ?? undefined,
    ending: (wordPiece ? model.tokens.sep : model.tokens.shouldAppendEosToken ? model.tokens.eos : null) ?? undefined,
    guard: openGuard(controlTexts, tokenize),
  }
}

type Metadata = {
  general?: { sampling?: Record<string, unknown> }
  tokenizer?: Record<string, unknown>
}

const numberOr = (value: unknown, otherwise: number): number => (typeof value === 'number' && Number.isFinite(value) ? value : otherwise)

const readDefaults = (metadata: Metadata, options: EngineOptions): SamplingDefaults => {
  const sampling = metadata.general?.sampling ?? {}
  return {
    temperature: options.temperature ?? numberOr(sampling['temp'], 0.7),
    topP: numberOr(sampling['top_p'], 1),
    topK: numberOr(sampling['top_k'], 0),
    minP: numberOr(sampling['min_p'], 0),
  }
}

const readTemplate = (path: string | undefined): Promise<string | undefined> =>
  path === undefined
    ? Promise.resolve(undefined)
    : readFile(path, 'utf8').catch((error: unknown) => {
        throw new LoadError(`The chat template ${path} cannot be read: ${reason(error)}`)
      })

const reason = (error: unknown): string => (error instanceof Error ? error.message : String(error))

/** Opens llama.cpp, checks that the model fits into the memory it may have, loads it and makes its sequences. */
export const loadModel = async (options: EngineOptions, log: Log, onProgress: (progress: number) => void): Promise<Loaded> => {
  const file = await stat(options.modelPath).catch((error: unknown) => {
    throw new LoadError(`The model file ${options.modelPath} cannot be read: ${reason(error)}`)
  })
  if (!file.isFile()) throw new LoadError(`The model ${options.modelPath} is not a file.`)

  const native = openNativeLog(log)
  // Never compile and never download: what the packages brought is what there is.
  const llama = await getLlama({
    gpu: options.gpu === 'off' ? false : 'auto',
    build: 'never',
    skipDownload: true,
    progressLogs: false,
    maxThreads: options.threads,
    logLevel: LlamaLogLevel.error,
    logger: native.line,
  })

  const info = await readGgufFileInfo(options.modelPath, { logWarnings: false }).catch((error: unknown) => {
    throw new LoadError(`The model file ${options.modelPath} is not a readable GGUF file: ${reason(error)}`)
  })
  const insights = await GgufInsights.from(info, llama)
  const trained = insights.trainContextSize ?? DEFAULT_CONTEXT
  const asked = {
    sequences: options.type === 'chat' ? options.sequences : 1,
    contextTokens: options.contextTokens ?? Math.min(trained, DEFAULT_CONTEXT),
  }

  // On a CPU llama.cpp's flash attention makes prompts cheaper (× 0.6) and answers dearer (× 4 at 1,000 tokens of context): answers win.
  const flashAttention = llama.gpu === false ? false : 'auto'
  const isEmbeddingContext = options.type !== 'chat'
  // An encoder sees its whole input in one batch, so the batch must hold the longest input.
  const batchFor = (contextTokens: number): number =>
    isEmbeddingContext ? contextTokens + 1 : Math.min(BATCH_TOKENS, contextTokens * asked.sequences)
  const fit = await fitMemory(
    async (sequences, contextTokens) => {
      const need = await insights.estimateContextResourceRequirementsV2({
        contextSize: contextTokens,
        sequences,
        modelGpuLayers: 0,
        batchSize: batchFor(contextTokens),
        isEmbeddingContext,
        flashAttention,
      })
      return file.size + need.cpuRam
    },
    asked,
    options.memoryMb * MEGABYTE,
  )
  if (!fit.fits) {
    throw new LoadError(
      `The model ${options.modelPath} needs about ${Math.ceil(fit.needBytes / MEGABYTE)} MB even with one sequence and a short context; ` +
        `--memory-mb allows ${options.memoryMb} MB.`,
    )
  }
  if (fit.sequences < asked.sequences || fit.contextTokens < asked.contextTokens) {
    log.warn('made smaller to fit into the memory', {
      memoryMb: options.memoryMb,
      sequencesAsked: asked.sequences,
      sequences: fit.sequences,
      contextAsked: asked.contextTokens,
      context: fit.contextTokens,
    })
  }

  const model = await llama.loadModel({ modelPath: options.modelPath, onLoadProgress: onProgress }).catch((error: unknown) => {
    throw new LoadError(`The model file ${options.modelPath} cannot be loaded: ${reason(error)}`)
  })
  const { contextTokens, sequences } = fit
  const common = { contextSize: contextTokens, batchSize: batchFor(contextTokens), threads: options.threads }
  const limits = { maxWaiting: options.maxWaiting, maxWaitMs: options.maxWaitMs }
  const fault = (error: unknown): never => {
    throw new LoadError(`The model ${options.modelPath} cannot be used as ${options.type}: ${reason(error)}`)
  }

  const openServes = async (): Promise<Serves> => {
    if (options.type === 'embedding') {
      // One token more than an input may have: the library counts one for a next token that an encoder never makes.
      const context = await model.createEmbeddingContext({ ...common, contextSize: contextTokens + 1 }).catch(fault)
      return {
        type: 'embedding',
        context,
        slots: openSlots({ sequences: Array(options.sequences).fill(undefined), cached: () => [], ...limits }),
      }
    }
    if (options.type === 'rerank') {
      const context = await model.createRankingContext({ ...common, contextSize: contextTokens + 1 }).catch(fault)
      return {
        type: 'rerank',
        context,
        slots: openSlots({ sequences: Array(options.sequences).fill(undefined), cached: () => [], ...limits }),
      }
    }
    const batching = openBatching()
    // `strategy` waits for those that are missing. A turn of the loop later, as the library has it, what was said is written before the
    // next step begins, not meanwhile: a single stream makes a twentieth less.
    const dispatchSchedule = (dispatch: () => void): void => dispatch()
    const context = await model
      .createContext({
        ...common,
        sequences,
        flashAttention,
        batching: { itemPrioritizationStrategy: batching.strategy, dispatchSchedule },
      })
      .catch(fault)
    const metadata = info.metadata as unknown as Metadata
    const own = await readTemplate(options.chatTemplatePath)
    const source = (name: string): ChatTemplate | undefined => {
      const text = own ?? metadata.tokenizer?.[name]
      if (typeof text !== 'string') return undefined
      try {
        return openTemplate(llama, text)
      } catch (error) {
        log.warn('the chat template cannot be used', { name, reason: reason(error) })
        return undefined
      }
    }
    return {
      type: 'chat',
      context,
      batching,
      slots: openSlots({
        sequences: Array.from({ length: sequences }, () => context.getSequence()),
        cached: (sequence) => sequence.contextTokens,
        ...limits,
      }),
      template: source('chat_template'),
      toolTemplate: source('chat_template.tool_use'),
      templateValues: { bos_token: model.tokens.bosString ?? '', eos_token: model.tokens.eosString ?? '' },
      defaults: readDefaults(metadata, options),
    }
  }

  const serves = await openServes()
  native.serve()
  return { llama, model, contextTokens, sequences, vocabulary: openVocabulary(model), serves }
}
