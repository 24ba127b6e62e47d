/** A page of an Ogg file (RFC 3533), without the mark that it is the last. */
type Page = { readonly bytes: Uint8Array; readonly isLast: boolean; readonly granule: bigint }

const HEADER_BYTES = 27
const LAST = 0x04
const MARK = [0x4f, 0x67, 0x67, 0x53] // "OggS"

const isPage = (bytes: Uint8Array, at: number): boolean => MARK.every((value, index) => bytes[at + index] === value)

/** The pages of a file, the last one as far as it goes. What is damaged between two pages is left out. */
export function* oggPages(file: Uint8Array): Generator<Page> {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength)
  for (let at = 0; at + HEADER_BYTES <= file.length; ) {
    if (!isPage(file, at)) {
      at = file.indexOf(MARK[0] as number, at + 1)
      if (at < 0) return
      continue
    }
    const segments = file[at + 26] ?? 0
    const start = at + HEADER_BYTES + segments
    const length = file.subarray(at + HEADER_BYTES, start).reduce((sum, segment) => sum + segment, 0)
    if (start + length > file.length) {
      const cut = wholePackets(file, at)
      if (cut !== undefined) yield { bytes: cut, isLast: false, granule: 0n }
      return
    }
    const bytes = file.slice(at, start + length)
    const flags = bytes[5] ?? 0
    // The decoders believe what the last page says about the length, and would make as much silence as it likes.
    bytes[5] = flags & ~LAST
    yield { bytes, isLast: (flags & LAST) !== 0, granule: view.getBigInt64(at + 6, true) }
    at = start + length
  }
}

/** What there is of a page that is cut off, as a page of fewer packets; its check sum is wrong then, and nobody looks at it. */
const wholePackets = (file: Uint8Array, at: number): Uint8Array | undefined => {
  const start = at + HEADER_BYTES + (file[at + 26] ?? 0)
  let length = 0
  let kept = { segments: 0, length: 0 }
  for (let segment = 1; at + HEADER_BYTES + segment <= Math.min(start, file.length); segment += 1) {
    const size = file[at + HEADER_BYTES + segment - 1] ?? 0
    length += size
    if (start + length > file.length) break
    if (size < 255) kept = { segments: segment, length } // a packet ends with a segment that is not full
  }
  if (kept.segments === 0) return undefined
  const page = new Uint8Array(HEADER_BYTES + kept.segments + kept.length)
  page.set(file.subarray(at, at + HEADER_BYTES + kept.segments))
  page.set(file.subarray(start, start + kept.length), HEADER_BYTES + kept.segments)
  page[5] = (page[5] ?? 0) & ~LAST
  page[26] = kept.segments
  return page
}

/** Samples that Opus makes before the first one that counts (RFC 7845 §4.2); its pages count them, its decoder leaves them out. */
export const preSkipOf = (firstPage: Uint8Array): number => {
  const at = HEADER_BYTES + (firstPage[26] ?? 0) + 10
  return (firstPage[at] ?? 0) | ((firstPage[at + 1] ?? 0) << 8)
}
