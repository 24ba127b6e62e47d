import { findMpegFrame } from './mpeg-frame.ts'
import { type AudioOutcome, refused } from './pcm.ts'

export type Format = 'wav' | 'flac' | 'ogg-vorbis' | 'ogg-opus' | 'ogg-flac' | 'mpeg-audio' | 'mpeg-program-stream'

const MAX_CHANNELS = 8

const ascii = (bytes: Uint8Array, at: number, length: number): string => String.fromCharCode(...bytes.subarray(at, at + length))

const startsWith = (bytes: Uint8Array, at: number, ...values: readonly number[]): boolean =>
  values.every((value, index) => bytes[at + index] === value)

/** Formats that we know by sight and do not read, so that the refusal can say what the file is. */
const STRANGERS: readonly { name: string; is(bytes: Uint8Array): boolean }[] = [
  { name: 'an MPEG-4 file (m4a, mp4, mov)', is: (bytes) => ascii(bytes, 4, 4) === 'ftyp' },
  { name: 'a Matroska or WebM file', is: (bytes) => startsWith(bytes, 0, 0x1a, 0x45, 0xdf, 0xa3) },
  { name: 'an AIFF file', is: (bytes) => ascii(bytes, 0, 4) === 'FORM' },
  { name: 'a CAF file', is: (bytes) => ascii(bytes, 0, 4) === 'caff' },
  { name: 'an AMR file', is: (bytes) => ascii(bytes, 0, 5) === '#!AMR' },
  { name: 'a Windows Media file', is: (bytes) => startsWith(bytes, 0, 0x30, 0x26, 0xb2, 0x75) },
  // The layer bits of an MPEG header are zero, which only ADTS does.
  { name: 'an AAC file', is: (bytes) => bytes[0] === 0xff && ((bytes[1] ?? 0) & 0xf6) === 0xf0 },
]

/** What is inside is told by the first packet of the first page: data-plane.md 11.1 lists oga and ogg without saying which codec. */
const insideOgg = (bytes: Uint8Array): AudioOutcome<Format> => {
  const at = 27 + (bytes[26] ?? 0)
  const [codec, channels]: [Format | undefined, number] =
    ascii(bytes, at, 8) === 'OpusHead'
      ? ['ogg-opus', bytes[at + 9] ?? 0]
      : ascii(bytes, at + 1, 6) === 'vorbis' && bytes[at] === 0x01
        ? ['ogg-vorbis', bytes[at + 11] ?? 0]
        : ascii(bytes, at + 1, 4) === 'FLAC' && bytes[at] === 0x7f
          ? ['ogg-flac', 1]
          : [undefined, 0]
  if (codec === undefined) return refused('it is an Ogg file whose codec is not Vorbis, Opus or FLAC')
  if (channels < 1 || channels > MAX_CHANNELS) return refused(`it has ${channels} channels`)
  return { ok: true, value: codec }
}

/** Which format a file is in, by its bytes: names and content types of uploads are often wrong. */
export const detect = (bytes: Uint8Array): AudioOutcome<Format> => {
  const found = (value: Format): AudioOutcome<Format> => ({ ok: true, value })
  if (bytes.length === 0) return refused('it is empty', 'Send a file with sound in it.')
  if (['RIFF', 'RF64'].includes(ascii(bytes, 0, 4)) && ascii(bytes, 8, 4) === 'WAVE') return found('wav')
  if (ascii(bytes, 0, 4) === 'fLaC') return found('flac')
  if (ascii(bytes, 0, 4) === 'OggS') return insideOgg(bytes)
  if (startsWith(bytes, 0, 0x00, 0x00, 0x01, 0xba)) return found('mpeg-program-stream')
  const stranger = STRANGERS.find(({ is }) => is(bytes))
  if (stranger !== undefined) return refused(`it is ${stranger.name}`)
  const behindTag = bytes.subarray(id3Bytes(bytes))
  // Some writers tag a FLAC file as if it were an mp3.
  if (ascii(behindTag, 0, 4) === 'fLaC') return found('flac')
  if (findMpegFrame(behindTag) !== undefined) return found('mpeg-audio')
  return refused('it is in none of the formats flac, mp3, mpeg, mpga, oga, ogg and wav')
}

/** An ID3v2 tag writes its length in four bytes of seven bits. */
export const id3Bytes = (bytes: Uint8Array): number => {
  if (ascii(bytes, 0, 3) !== 'ID3' || bytes.length < 10) return 0
  const length = [6, 7, 8, 9].reduce((sum, at) => sum * 128 + ((bytes[at] ?? 0) & 0x7f), 0)
  const footer = ((bytes[5] ?? 0) & 0x10) === 0 ? 0 : 10
  return 10 + length + footer
}
