import { no, type Outcome, yes } from '../../kit/outcome.ts'
import type { Packed } from './data-url.ts'

const MAX_SOUND_BYTES = 25 * 1024 * 1024 // data-plane.md 6.4
const MAX_MINUTES = 40
const SECONDS = 60
const LOOK_BYTES = 16 * 1024

/** How long a sound is, as far as its first bytes say it, or why it is not taken (data-plane.md 6.4). */
export const readSound = (bytes: Packed, format: 'wav' | 'mp3'): Outcome<{ readonly seconds: number }, string> => {
  if (bytes.length > MAX_SOUND_BYTES) return no(`the audio is larger than ${MAX_SOUND_BYTES / 2 ** 20} MB`)
  const seconds = format === 'wav' ? wavSeconds(bytes) : mp3Seconds(bytes)
  if (seconds === undefined) return no(`it is not ${format === 'wav' ? 'a WAV' : 'an MP3'} file`)
  if (seconds > MAX_MINUTES * SECONDS) return no(`the audio is longer than ${MAX_MINUTES} minutes`)
  return yes({ seconds })
}

const wavSeconds = (bytes: Packed): number | undefined => {
  const head = bytes.at(0, LOOK_BYTES)
  if (head.toString('latin1', 0, 4) !== 'RIFF' || head.toString('latin1', 8, 12) !== 'WAVE') return undefined
  let bytesPerSecond = 0
  for (let at = 12; at + 8 <= head.length; ) {
    const chunk = head.toString('latin1', at, at + 4)
    const length = head.readUInt32LE(at + 4)
    if (chunk === 'fmt ' && at + 20 <= head.length) bytesPerSecond = head.readUInt32LE(at + 16)
    // A recorder that could not go back to fill in the length left the largest or none: then it is all that follows.
    if (chunk === 'data') return bytesPerSecond === 0 ? undefined : Math.min(length || Infinity, bytes.length - at - 8) / bytesPerSecond
    at += 8 + length + (length % 2)
  }
  return undefined
}

const ID3_HEADER_BYTES = 10
const BITRATES_V1 = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320]
const BITRATES_V2 = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160]
const RATES = [44_100, 48_000, 32_000]

/** By the number of frames where an encoder wrote it down, and else by the rate of the first frame, as if all were alike. */
const mp3Seconds = (bytes: Packed): number | undefined => {
  const tag = bytes.at(0, ID3_HEADER_BYTES)
  const tagBytes = tag.toString('latin1', 0, 3) === 'ID3' && tag.length === ID3_HEADER_BYTES ? ID3_HEADER_BYTES + synchsafe(tag) : 0
  const head = bytes.at(tagBytes, LOOK_BYTES)
  for (let at = 0; at + 4 <= head.length; at += 1) {
    const frame = frameAt(head, at)
    if (frame === undefined) continue
    const counted = /(?:Xing|Info)[^]{3}([^])([^]{4})/.exec(head.toString('latin1', at, at + 200))
    if (counted !== null && ((counted[1] ?? '').charCodeAt(0) & 1) === 1) {
      const frames = Buffer.from(counted[2] ?? '', 'latin1').readUInt32BE(0)
      return (frames * frame.samples) / frame.rate
    }
    // Any two bytes look like the beginning of a frame now and then; a second frame right behind it does not happen by chance.
    const last = tagBytes + at + frame.bytes >= bytes.length
    if (last || frameAt(head, at + frame.bytes) !== undefined) return ((bytes.length - tagBytes - at) * 8) / frame.bitrate
  }
  return undefined
}

const synchsafe = (tag: Buffer): number => [6, 7, 8, 9].reduce((length, place) => (length << 7) | ((tag[place] ?? 0) & 0x7f), 0)

const frameAt = (bytes: Buffer, at: number): { bytes: number; bitrate: number; rate: number; samples: number } | undefined => {
  if (bytes[at] !== 0xff || at + 4 > bytes.length) return undefined
  const second = bytes[at + 1] ?? 0
  const third = bytes[at + 2] ?? 0
  const version = (second >> 3) & 3 // 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
  if ((second & 0xe0) !== 0xe0 || version === 1 || ((second >> 1) & 3) !== 1) return undefined
  const bitrate = ((version === 3 ? BITRATES_V1 : BITRATES_V2)[third >> 4] ?? 0) * 1000
  const rate = (RATES[(third >> 2) & 3] ?? 0) / (version === 3 ? 1 : version === 2 ? 2 : 4)
  if (bitrate === 0 || rate === 0) return undefined
  const samples = version === 3 ? 1152 : 576
  return { bytes: Math.floor((samples / 8) * (bitrate / rate)) + ((third >> 1) & 1), bitrate, rate, samples }
}
