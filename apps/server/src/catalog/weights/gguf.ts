import { type FileHandle, open } from 'node:fs/promises'

/**
 * Reads what a GGUF file says of itself: magic, version, counts, typed key-values, tensor infos (all little-endian), then data
 * aligned to 32 bytes or to what the file says. Only the header is read, front to back, through one small window; values nobody asks for
 * (vocabularies, merges, scores) are stepped over. A file from a stranger is the usual case, so every length it states is
 * bounded before it is believed, and a data part that is shorter than its tensors is refused here instead of in the engine.
 */
export type Gguf = {
  readonly version: number
  /** Empty in the parts behind the first of a model that is split: they carry tensors only. */
  readonly architecture: string
  readonly name: string | null
  readonly organization: string | null
  readonly licence: string | null
  /** `Q4_0`, `F16` and so on; null where the file does not say. */
  readonly quantization: string | null
  readonly contextTokens: number | null
  readonly embeddingLength: number | null
  readonly pooling: Pooling | null
  readonly tokenizer: string | null
  readonly chatTemplate: string | null
  /** Values in all tensors of this file, which is the number of parameters of a model in one part. */
  readonly parameters: number
  readonly tensors: number
  /** Files this model is split into; 1 for most. */
  readonly parts: number
  /** 0 for the first. */
  readonly part: number
  readonly bytes: number
}

export type Pooling = 'none' | 'mean' | 'cls' | 'last' | 'rank'

const MAGIC = 0x46554747 // "GGUF"
const WINDOW_BYTES = 256 * 1024
const MAX_HEADER_BYTES = 256 * 1024 * 1024 // the largest vocabularies with their merges take about 20 MB
const MAX_KEYS = 65_536
const MAX_TENSORS = 262_144
const MAX_KEY_BYTES = 65_535 // the format's own bound
const MAX_STRING_BYTES = 4 * 1024 * 1024 // of a value we keep; chat templates reach a few hundred kilobytes
const MAX_TENSOR_NAME_BYTES = 1024
const MAX_DIMENSIONS = 8
const MAX_TENSOR_VALUES = 2 ** 50
const MAX_ALIGNMENT = 65_536

const POOLINGS: readonly Pooling[] = ['none', 'mean', 'cls', 'last', 'rank']

/** `general.file_type`, as llama.cpp numbers it. */
const FILE_TYPES: Readonly<Record<number, string>> = {
  0: 'F32',
  1: 'F16',
  2: 'Q4_0',
  3: 'Q4_1',
  7: 'Q8_0',
  8: 'Q5_0',
  9: 'Q5_1',
  10: 'Q2_K',
  11: 'Q3_K_S',
  12: 'Q3_K_M',
  13: 'Q3_K_L',
  14: 'Q4_K_S',
  15: 'Q4_K_M',
  16: 'Q5_K_S',
  17: 'Q5_K_M',
  18: 'Q6_K',
  19: 'IQ2_XXS',
  20: 'IQ2_XS',
  21: 'Q2_K_S',
  22: 'IQ3_XS',
  23: 'IQ3_XXS',
  24: 'IQ1_S',
  25: 'IQ4_NL',
  26: 'IQ3_S',
  27: 'IQ3_M',
  28: 'IQ2_S',
  29: 'IQ2_M',
  30: 'IQ4_XS',
  31: 'IQ1_M',
  32: 'BF16',
  36: 'TQ1_0',
  37: 'TQ2_0',
  38: 'MXFP4',
}

/** Per tensor type: values in a block, bytes of a block. A type that is not here is newer than we are, and its size is not checked. */
const BLOCKS: Readonly<Record<number, readonly [values: number, bytes: number]>> = {
  0: [1, 4],
  1: [1, 2],
  2: [32, 18],
  3: [32, 20],
  6: [32, 22],
  7: [32, 24],
  8: [32, 34],
  9: [32, 36],
  10: [256, 84],
  11: [256, 110],
  12: [256, 144],
  13: [256, 176],
  14: [256, 210],
  15: [256, 292],
  16: [256, 66],
  17: [256, 74],
  18: [256, 98],
  19: [256, 50],
  20: [32, 18],
  21: [256, 110],
  22: [256, 82],
  23: [256, 136],
  24: [1, 1],
  25: [1, 2],
  26: [1, 4],
  27: [1, 8],
  28: [1, 8],
  29: [256, 56],
  30: [1, 2],
  34: [256, 54],
  35: [256, 66],
  39: [32, 17],
}

const TYPE_STRING = 8
const TYPE_ARRAY = 9
/** Bytes of the value types of fixed size: u8 i8 u16 i16 u32 i32 f32 bool, then u64 i64 f64. */
const SCALAR_BYTES: Readonly<Record<number, number>> = { 0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8 }

const WANTED = new Set([
  'general.architecture',
  'general.type',
  'general.name',
  'general.basename',
  'general.organization',
  'general.license',
  'general.file_type',
  'general.alignment',
  'tokenizer.ggml.model',
  'tokenizer.chat_template',
  'split.no',
  'split.count',
])
/** Keys that stand behind the architecture's name, which need not come first in the file. */
const WANTED_ENDS = ['.context_length', '.embedding_length', '.pooling_type']

/** What is wrong with a file, in words for a person. `readGguf` puts the path in front. */
const wrong = (sentence: string): Error => new Error(sentence)

type Header = ReturnType<typeof openHeader>

const openHeader = (file: FileHandle, fileBytes: number) => {
  let window: Buffer = Buffer.alloc(0)
  let windowAt = 0 // place of the window's first byte in the file
  let at = 0 // next byte to read, in the window

  const truncated = (): Error => wrong(`is not complete: it ends after ${fileBytes} bytes, inside its header`)

  /** Makes `length` bytes readable at `at`; awaited only when the window does not have them yet. */
  const fill = async (length: number): Promise<void> => {
    const place = windowAt + at
    if (place + length > fileBytes) throw truncated()
    if (place + length > MAX_HEADER_BYTES) throw wrong(`has a header of more than ${MAX_HEADER_BYTES} bytes`)
    const next = Buffer.allocUnsafe(Math.min(Math.max(WINDOW_BYTES, length), fileBytes - place))
    let filled = 0
    while (filled < next.length) {
      const { bytesRead } = await file.read(next, filled, next.length - filled, place + filled)
      if (bytesRead === 0) throw truncated()
      filled += bytesRead
    }
    window = next
    windowAt = place
    at = 0
  }

  const take = (length: number): number => {
    const from = at
    at += length
    return from
  }
  const has = (length: number): boolean => at + length <= window.length

  const u32 = async (): Promise<number> => {
    if (!has(4)) await fill(4)
    return window.readUInt32LE(take(4))
  }
  const u64 = async (): Promise<number> => {
    if (!has(8)) await fill(8)
    const value = window.readBigUInt64LE(take(8))
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw wrong(`is damaged: a length of ${value} stands in its header`)
    return Number(value)
  }
  const skip = async (length: number): Promise<void> => {
    if (has(length)) {
      at += length
      return
    }
    const place = windowAt + at + length
    if (place > fileBytes) throw truncated()
    if (place > MAX_HEADER_BYTES) throw wrong(`has a header of more than ${MAX_HEADER_BYTES} bytes`)
    window = Buffer.alloc(0)
    windowAt = place
    at = 0
  }
  const text = async (maxBytes: number, what: string): Promise<string> => {
    const length = await u64()
    if (length > maxBytes) throw wrong(`has ${what} of ${length} bytes, more than ${maxBytes}`)
    if (!has(length)) await fill(length)
    return window.toString('utf8', take(length), at)
  }
  const skipText = async (): Promise<void> => {
    await skip(await u64())
  }
  const scalar = async (type: number): Promise<number | boolean> => {
    const length = SCALAR_BYTES[type] ?? 0
    if (!has(length)) await fill(length)
    const from = take(length)
    switch (type) {
      case 0:
        return window.readUInt8(from)
      case 1:
        return window.readInt8(from)
      case 2:
        return window.readUInt16LE(from)
      case 3:
        return window.readInt16LE(from)
      case 4:
        return window.readUInt32LE(from)
      case 5:
        return window.readInt32LE(from)
      case 6:
        return window.readFloatLE(from)
      case 7:
        return window.readUInt8(from) !== 0
      case 10:
        return Number(window.readBigUInt64LE(from))
      case 11:
        return Number(window.readBigInt64LE(from))
      default:
        return window.readDoubleLE(from)
    }
  }

  return { u32, u64, skip, text, skipText, scalar, place: () => windowAt + at }
}

const skipArray = async (header: Header): Promise<void> => {
  const type = await header.u32()
  const length = await header.u64()
  const bytes = SCALAR_BYTES[type]
  if (bytes !== undefined) {
    if (length > MAX_HEADER_BYTES) throw wrong(`is damaged: an array of ${length} values stands in its header`)
    return header.skip(length * bytes)
  }
  if (type !== TYPE_STRING) throw wrong(`has an array of value type ${type}, which this version cannot read`)
  // Bounded by the file: every string takes at least the eight bytes of its length.
  for (let index = 0; index < length; index += 1) await header.skipText()
}

type Value = string | number | boolean

const readValues = async (header: Header, count: number): Promise<Map<string, Value>> => {
  const values = new Map<string, Value>()
  for (let index = 0; index < count; index += 1) {
    const key = await header.text(MAX_KEY_BYTES, 'a key')
    const type = await header.u32()
    const wanted = WANTED.has(key) || WANTED_ENDS.some((end) => key.endsWith(end))
    if (type === TYPE_ARRAY) await skipArray(header)
    else if (type === TYPE_STRING) {
      if (wanted) values.set(key, await header.text(MAX_STRING_BYTES, `a value of ${key}`))
      else await header.skipText()
    } else if (SCALAR_BYTES[type] === undefined)
      throw wrong(`has a value of type ${type} at ${JSON.stringify(key.slice(0, 100))}, which this version cannot read`)
    else {
      const value = await header.scalar(type)
      if (wanted) values.set(key, value)
    }
  }
  return values
}

/** The number of values in all tensors, and where the last byte of data must lie, counted from the start of the data. */
const readTensors = async (header: Header, count: number): Promise<{ parameters: number; dataBytes: number }> => {
  let parameters = 0
  let dataBytes = 0
  for (let index = 0; index < count; index += 1) {
    await header.text(MAX_TENSOR_NAME_BYTES, "a tensor's name")
    const dimensions = await header.u32()
    if (dimensions > MAX_DIMENSIONS) throw wrong(`is damaged: a tensor of ${dimensions} dimensions stands in its header`)
    let values = 1
    for (let dimension = 0; dimension < dimensions; dimension += 1) values *= await header.u64()
    if (values > MAX_TENSOR_VALUES) throw wrong(`is damaged: a tensor of ${values} values stands in its header`)
    const type = await header.u32()
    const offset = await header.u64()
    const block = BLOCKS[type]
    parameters += values
    dataBytes = Math.max(dataBytes, offset + (block === undefined ? 0 : Math.ceil(values / block[0]) * block[1]))
  }
  return { parameters, dataBytes }
}

const readHeader = async (file: FileHandle, bytes: number): Promise<Gguf> => {
  if (bytes < 24) throw wrong(`is not a GGUF file: it has ${bytes} bytes`)
  const header = openHeader(file, bytes)
  if ((await header.u32()) !== MAGIC) throw wrong('is not a GGUF file: it does not begin with "GGUF"')
  const version = await header.u32()
  // A big-endian file shows its version with the bytes the other way round.
  if (version > 0xffff) throw wrong('is a big-endian GGUF file; engines here read little-endian ones only')
  if (version !== 2 && version !== 3)
    throw wrong(`is of GGUF version ${version}; versions 2 and 3 can be read. Convert it again with a current tool`)
  const tensors = await header.u64()
  const keys = await header.u64()
  if (tensors > MAX_TENSORS) throw wrong(`is damaged: it claims ${tensors} tensors`)
  if (keys > MAX_KEYS) throw wrong(`is damaged: it claims ${keys} keys`)

  const values = await readValues(header, keys)
  const { parameters, dataBytes } = await readTensors(header, tensors)

  const text = (key: string): string | null => {
    const value = values.get(key)
    return typeof value === 'string' && value.trim() !== '' ? value : null
  }
  const whole = (key: string): number | null => {
    const value = values.get(key)
    return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 ? value : null
  }

  const alignment = whole('general.alignment') ?? 32
  if (alignment === 0 || alignment > MAX_ALIGNMENT) throw wrong(`is damaged: an alignment of ${alignment} stands in its header`)
  const dataAt = Math.ceil(header.place() / alignment) * alignment
  const needed = tensors === 0 ? header.place() : dataAt + dataBytes
  if (needed > bytes) throw wrong(`is not complete: its tensors need ${needed} bytes and it has ${bytes}`)

  const kind = text('general.type')
  if (kind !== null && kind !== 'model') throw wrong(`holds ${JSON.stringify(kind.slice(0, 40))}, not a model that can be run by itself`)
  const architecture = text('general.architecture')
  const part = whole('split.no') ?? 0
  if (architecture === null && part === 0) throw wrong('does not name its architecture (general.architecture)')
  const pooling = whole(`${architecture}.pooling_type`)
  const fileType = whole('general.file_type')
  return {
    version,
    architecture: architecture ?? '',
    name: text('general.name') ?? text('general.basename'),
    organization: text('general.organization'),
    licence: text('general.license'),
    quantization: fileType === null ? null : (FILE_TYPES[fileType] ?? null),
    contextTokens: whole(`${architecture}.context_length`),
    embeddingLength: whole(`${architecture}.embedding_length`),
    pooling: pooling === null ? null : (POOLINGS[pooling] ?? null),
    tokenizer: text('tokenizer.ggml.model'),
    chatTemplate: text('tokenizer.chat_template'),
    parameters,
    tensors,
    parts: Math.max(1, whole('split.count') ?? 1),
    part,
    bytes,
  }
}

/** Throws an error with a sentence for a person, about `shown`, when the file is not a complete, readable GGUF file. */
export const readGguf = async (path: string, shown: string = path): Promise<Gguf> => {
  const file = await open(path, 'r').catch((cause: unknown) => {
    throw new Error(`${shown} cannot be opened: ${cause instanceof Error ? cause.message : String(cause)}`, { cause })
  })
  try {
    const { size } = await file.stat()
    return await readHeader(file, size)
  } catch (cause) {
    throw new Error(`${shown} ${cause instanceof Error ? cause.message : String(cause)}.`, { cause })
  } finally {
    await file.close()
  }
}
