const SEARCH_BYTES = 64 * 1024 // files that were cut out of a broadcast begin in the middle of a frame, never this far from the next

// Kilobits a second by index: MPEG-1 layers I, II, III, then MPEG-2 and 2.5 layer I, and layers II and III.
const BITRATES_V1: readonly (readonly number[])[] = [
  [0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448],
  [0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384],
  [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
]
const BITRATES_V2: readonly (readonly number[])[] = [
  [0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256],
  [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
  [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
]
const SAMPLE_RATES = [44_100, 48_000, 32_000]

/** The length in bytes of the MPEG audio frame whose header stands here; undefined where there is none. */
const frameBytes = (bytes: Uint8Array, at: number): number | undefined => {
  const [first = 0, second = 0, third = 0] = bytes.subarray(at, at + 3)
  if (first !== 0xff || (second & 0xe0) !== 0xe0) return undefined
  const version = (second >> 3) & 3 // 3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5, 1: reserved
  const layer = 4 - ((second >> 1) & 3) // 4 is reserved
  const rate = SAMPLE_RATES[(third >> 2) & 3]
  const kilobits = (version === 3 ? BITRATES_V1 : BITRATES_V2)[layer - 1]?.[third >> 4]
  if (version === 1 || rate === undefined || kilobits === undefined || kilobits === 0) return undefined
  const sampleRate = version === 3 ? rate : version === 2 ? rate / 2 : rate / 4
  const padding = (third >> 1) & 1
  if (layer === 1) return (Math.floor((12_000 * kilobits) / sampleRate) + padding) * 4
  const samples = layer === 3 && version !== 3 ? 72_000 : 144_000
  return Math.floor((samples * kilobits) / sampleRate) + padding
}

/**
 * Where MPEG audio begins. A header is eleven set bits and a few valid fields, which chance makes often, so a second header must
 * stand where the first frame ends, unless the file ends there.
 */
export const findMpegFrame = (bytes: Uint8Array): number | undefined => {
  const limit = Math.min(bytes.length - 3, SEARCH_BYTES)
  for (let at = bytes.indexOf(0xff); at >= 0 && at < limit; at = bytes.indexOf(0xff, at + 1)) {
    const length = frameBytes(bytes, at)
    if (length === undefined) continue
    const next = at + length
    if (next + 3 > bytes.length ? at === 0 : frameBytes(bytes, next) !== undefined) return at
  }
  return undefined
}
