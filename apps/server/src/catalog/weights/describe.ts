import type { ModelType } from '../model.ts'
import type { Gguf } from './gguf.ts'

/** What a catalogue entry can learn from the weights themselves. */
export type Description = {
  readonly type: ModelType
  /** The model's own window, where the file states it. */
  readonly contextTokens: number | null
  readonly dimensions: number | null
  readonly features: { readonly tools: boolean; readonly structuredOutput: boolean; readonly reasoning: boolean; readonly vision: boolean }
}

/** Architectures that only ever give vectors; their files do not always state a pooling. */
const ENCODERS: ReadonlySet<string> = new Set([
  'bert',
  'modern-bert',
  'nomic-bert',
  'nomic-bert-moe',
  'neo-bert',
  'jina-bert-v2',
  'jina-bert-v3',
  'eurobert',
  'gemma-embedding',
  'llama-embed',
  't5encoder',
])

/** A pooling of `none` says nothing: many chat models carry it. */
const typeOf = (gguf: Gguf): ModelType => {
  if (gguf.pooling === 'rank') return 'rerank'
  if (ENCODERS.has(gguf.architecture)) return 'embedding'
  return gguf.pooling === null || gguf.pooling === 'none' ? 'chat' : 'embedding'
}

const JINJA = /\{[{%][^]*?[%}]\}/g

/** A template knows tools when a statement of it, not its plain text, looks at `tools`. */
const knowsTools = (template: string): boolean =>
  (template.match(JINJA) ?? []).some((statement) => /\b(?:custom_|builtin_)?tools\b/.test(statement))

/** The marks of the families that think aloud: think tags, Qwen's switch, the channels of gpt-oss. */
const thinks = (template: string): boolean => /<\/?think>|\benable_thinking\b|\breasoning_content\b|<\|channel\|>/.test(template)

export const describeGguf = (gguf: Gguf): Description => {
  const type = typeOf(gguf)
  const template = type === 'chat' ? (gguf.chatTemplate ?? '') : ''
  return {
    type,
    contextTokens: gguf.contextTokens,
    dimensions: type === 'embedding' ? gguf.embeddingLength : null,
    // Structured output is a grammar of the embedded engine, so every chat model has it; that engine reads no images (engines.md, Vision).
    features: { tools: knowsTools(template), structuredOutput: type === 'chat', reasoning: thinks(template), vision: false },
  }
}
