import { availableParallelism } from 'node:os'
import { parseArgs } from 'node:util'

export type ModelType = 'chat' | 'embedding' | 'rerank' | 'audio'

export type EngineOptions = {
  readonly modelPath: string
  readonly name: string
  readonly type: ModelType
  /** Tokens of one sequence, input and output together. Undefined: what the model was trained on, at most `DEFAULT_CONTEXT`. */
  readonly contextTokens: number | undefined
  readonly maxOutputTokens: number
  readonly sequences: number
  readonly threads: number
  readonly memoryMb: number
  readonly gpu: 'auto' | 'off'
  readonly temperature: number | undefined
  /** A Jinja file in place of the template in the model file. */
  readonly chatTemplatePath: string | undefined
  /** Shorter lengths that an embedding model was trained to be cut to. */
  readonly matryoshka: readonly number[]
  /** The longest sound that is written down. Its samples take 64 kB of memory a second. */
  readonly maxAudioSeconds: number
  readonly maxWaiting: number
  readonly maxWaitMs: number
  readonly host: string
  readonly port: number
}

export type CommandLine =
  | { readonly kind: 'run'; readonly options: EngineOptions }
  | { readonly kind: 'help'; readonly text: string }
  | { readonly kind: 'wrong'; readonly message: string }

export const DEFAULT_CONTEXT = 8192

const HELP = `Serves one model over HTTP in the shapes of the OpenAI API.

  engine --model <file.gguf> --name <model name> --type <chat|embedding|rerank> [options]
  engine --model <directory> --name <model name> --type audio [options]

  --model <path>        a GGUF file; for audio the directory of a Whisper model in ONNX form
  --name <name>         what the model is called in requests and answers
  --type <type>         chat, embedding, rerank or audio (default chat)
  --context <tokens>    tokens per sequence, input and output together (default: what the model was trained on, at most ${DEFAULT_CONTEXT})
  --max-output <tokens> most tokens in one answer (default 4096)
  --sequences <n>       answers generated at the same time (default 8, at most 64)
  --threads <n>         threads of the CPU (default: one fewer than the cores)
  --memory-mb <n>       refuse to load what needs more than this (default 4096)
  --gpu <auto|off>      use a GPU where there is one (default auto)
  --temperature <n>     temperature of requests that name none (default: the model file's, else 0.7)
  --chat-template <file> a Jinja template in place of the one in the model file
  --matryoshka <list>   lengths an embedding model may be cut to, as 32,64,128 (default: none)
  --max-audio-minutes <n> longest sound that is written down (default 120)
  --max-waiting <n>     requests that may wait for a free sequence (default 64)
  --max-wait-ms <n>     how long one may wait before it gets 503 (default 30000)
  --host <address>      where to listen (default 127.0.0.1)
  --port <n>            port; 0 takes a free one (default 0)
  --help                this text

Environment: PARVIS_ENGINE_KEY, when set, must come with every request but /health as "Authorization: Bearer <key>".`

const MAX_SEQUENCES = 64 // llama.cpp's own bound on sequences of one context

/** Reads the command line; what is wrong is said with the name of the option. */
export const readCommandLine = (args: readonly string[]): CommandLine => {
  let values: Record<string, string | boolean | undefined>
  try {
    values = parseArgs({
      args: [...args],
      strict: true,
      allowPositionals: false,
      options: {
        model: { type: 'string' },
        name: { type: 'string' },
        type: { type: 'string', default: 'chat' },
        context: { type: 'string' },
        'max-output': { type: 'string', default: '4096' },
        sequences: { type: 'string', default: '8' },
        threads: { type: 'string' },
        'memory-mb': { type: 'string', default: '4096' },
        gpu: { type: 'string', default: 'auto' },
        temperature: { type: 'string' },
        'chat-template': { type: 'string' },
        matryoshka: { type: 'string', default: '' },
        'max-audio-minutes': { type: 'string', default: '120' },
        'max-waiting': { type: 'string', default: '64' },
        'max-wait-ms': { type: 'string', default: '30000' },
        host: { type: 'string', default: '127.0.0.1' },
        port: { type: 'string', default: '0' },
        help: { type: 'boolean', default: false },
      },
    }).values
  } catch (error) {
    return { kind: 'wrong', message: `${error instanceof Error ? error.message : String(error)} (--help lists the options)` }
  }
  if (values['help'] === true) return { kind: 'help', text: HELP }

  const wrong: string[] = []
  const text = (name: string): string => (typeof values[name] === 'string' ? values[name] : '')
  const required = (name: string): string => {
    if (text(name) === '') wrong.push(`--${name} is missing`)
    return text(name)
  }
  const oneOf = <T extends string>(name: string, allowed: readonly T[]): T => {
    const found = allowed.find((value) => value === text(name))
    if (found === undefined) wrong.push(`--${name} must be one of ${allowed.join(', ')}`)
    return found ?? (allowed[0] as T)
  }
  const whole = (name: string, least: number, most: number, value = text(name)): number => {
    const number = Number(value)
    if (!/^\d+$/.test(value) || number < least || number > most) wrong.push(`--${name} must be a whole number from ${least} to ${most}`)
    return number
  }

  const temperature = text('temperature') === '' ? undefined : Number(text('temperature'))
  if (temperature !== undefined && !(temperature >= 0 && temperature <= 2)) wrong.push('--temperature must be a number from 0 to 2')

  const options: EngineOptions = {
    modelPath: required('model'),
    name: required('name'),
    type: oneOf('type', ['chat', 'embedding', 'rerank', 'audio']),
    contextTokens: text('context') === '' ? undefined : whole('context', 16, 1 << 24),
    maxOutputTokens: whole('max-output', 1, 1 << 24),
    sequences: whole('sequences', 1, MAX_SEQUENCES),
    // One thread too many costs up to five times the CPU per token, because the engine's threads spin while they wait.
    threads: text('threads') === '' ? Math.max(1, availableParallelism() - 1) : whole('threads', 1, 1024),
    memoryMb: whole('memory-mb', 1, 1 << 26),
    gpu: oneOf('gpu', ['auto', 'off']),
    temperature,
    chatTemplatePath: text('chat-template') === '' ? undefined : text('chat-template'),
    matryoshka:
      text('matryoshka') === ''
        ? []
        : text('matryoshka')
            .split(',')
            .map((part) => whole('matryoshka', 1, 1 << 20, part.trim())),
    maxAudioSeconds: whole('max-audio-minutes', 1, 24 * 60) * 60,
    maxWaiting: whole('max-waiting', 0, 1 << 20),
    maxWaitMs: whole('max-wait-ms', 1, 1 << 30),
    host: required('host'),
    port: whole('port', 0, 65535),
  }
  return wrong.length > 0 ? { kind: 'wrong', message: `${wrong.join('; ')} (--help lists the options)` } : { kind: 'run', options }
}
