const PACK = 0xba
const END = 0xb9
const FIRST_AUDIO = 0xc0
const LAST_AUDIO = 0xdf

/** The next start code (00 00 01 xx) at or behind a place; -1 when there is none. */
const nextStartCode = (bytes: Uint8Array, from: number): number => {
  for (let at = bytes.indexOf(1, from + 2); at >= 0; at = bytes.indexOf(1, at + 1)) {
    if (bytes[at - 1] === 0 && bytes[at - 2] === 0 && at + 1 < bytes.length) return at - 2
  }
  return -1
}

/** ISO 13818-1 §2.4.3.6 for MPEG-2; in MPEG-1 stuffing, buffer size and time stamps stand one behind the other and tell themselves by their first bits. */
const payloadStart = (bytes: Uint8Array, header: number, end: number): number => {
  let at = header
  if (((bytes[at] ?? 0) & 0xc0) === 0x80) return at + 3 + (bytes[at + 2] ?? 0)
  while (at < end && bytes[at] === 0xff) at += 1
  if (((bytes[at] ?? 0) & 0xc0) === 0x40) at += 2
  const marks = (bytes[at] ?? 0) & 0xf0
  return at + (marks === 0x20 ? 5 : marks === 0x30 ? 10 : 1)
}

const packBytes = (bytes: Uint8Array, at: number): number =>
  ((bytes[at + 4] ?? 0) & 0xc0) === 0x40 ? 14 + ((bytes[at + 13] ?? 0) & 7) : 12

/** The sound of the first audio track of an MPEG program stream ("mpeg" and "mpg" files): its packets' payloads, joined. Video is skipped. */
export const audioOfProgramStream = (bytes: Uint8Array): Uint8Array => {
  const payloads: Uint8Array[] = []
  let track: number | undefined
  let at = nextStartCode(bytes, 0)
  while (at >= 0) {
    const id = bytes[at + 3] ?? END
    if (id === END) break
    if (id === PACK) {
      at = nextStartCode(bytes, at + packBytes(bytes, at))
      continue
    }
    // Below the system codes stand pictures and slices, which have no length: only a broken stream shows them here.
    if (id < END) {
      at = nextStartCode(bytes, at + 4)
      continue
    }
    const length = ((bytes[at + 4] ?? 0) << 8) | (bytes[at + 5] ?? 0)
    const end = Math.min(at + 6 + length, bytes.length)
    if (id >= FIRST_AUDIO && id <= LAST_AUDIO) {
      track ??= id
      const start = payloadStart(bytes, at + 6, end)
      if (id === track && start < end) payloads.push(bytes.subarray(start, end))
    }
    at = nextStartCode(bytes, end)
  }
  const joined = new Uint8Array(payloads.reduce((sum, payload) => sum + payload.length, 0))
  let offset = 0
  for (const payload of payloads) {
    joined.set(payload, offset)
    offset += payload.length
  }
  return joined
}
