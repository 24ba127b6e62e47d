import { FLACDecoder } from '@wasm-audio-decoders/flac'
import { OggVorbisDecoder } from '@wasm-audio-decoders/ogg-vorbis'
import { MPEGDecoder } from 'mpg123-decoder'
import { OggOpusDecoder } from 'ogg-opus-decoder'
import type { Format } from './detect.ts'
import { oggPages, preSkipOf } from './ogg.ts'
import type { Pcm } from './pcm.ts'

type Decoded = { readonly channelData: readonly Float32Array[]; readonly samplesDecoded: number; readonly sampleRate: number }

/** What the libraries have in common. What comes out of a piece is in memory at once, so the pieces are small. */
type Decoder = {
  decode(bytes: Uint8Array): Decoded | Promise<Decoded>
  flush?(): Promise<Decoded>
  free(): void
}

/** 24 bytes are the shortest frame, and hold 1,152 samples in two channels. */
const MPEG_PIECE_BYTES = 32 * 1024
/** Silence takes a dozen bytes for 65,535 samples, in up to eight channels. */
const FLAC_PIECE_BYTES = 2 * 1024

type Compressed = Exclude<Format, 'wav' | 'mpeg-program-stream'>

const OPENERS: Readonly<Record<Compressed, () => Decoder & { readonly ready: Promise<unknown> }>> = {
  'mpeg-audio': () => new MPEGDecoder(),
  flac: () => new FLACDecoder(),
  'ogg-flac': () => new FLACDecoder(),
  'ogg-vorbis': () => new OggVorbisDecoder(),
  'ogg-opus': () => new OggOpusDecoder(),
}

const toPcm = ({ channelData, samplesDecoded, sampleRate }: Decoded): Pcm | undefined =>
  samplesDecoded > 0 && channelData.length > 0 ? { sampleRate, channels: channelData } : undefined

function* cut(bytes: Uint8Array, pieceBytes: number): Generator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += pieceBytes) yield bytes.subarray(at, at + pieceBytes)
}

/** An Ogg file's pages, and how many samples its last page says there are: the last packet is mostly longer than what was recorded. */
const readOgg = (format: Compressed, bytes: Uint8Array): { pieces: Uint8Array[]; samples: number } => {
  const pages = [...oggPages(bytes)]
  const [first] = pages
  const last = pages.findLast(({ isLast }) => isLast)
  const skipped = format === 'ogg-opus' && first !== undefined ? preSkipOf(first.bytes) : 0
  return {
    pieces: pages.map((page) => page.bytes),
    samples: last === undefined ? Number.POSITIVE_INFINITY : Number(last.granule) - skipped,
  }
}

const piecesOf = (format: Compressed, bytes: Uint8Array): { pieces: Iterable<Uint8Array>; samples: number } => {
  switch (format) {
    case 'mpeg-audio':
      return { pieces: cut(bytes, MPEG_PIECE_BYTES), samples: Number.POSITIVE_INFINITY }
    case 'flac':
      return { pieces: cut(bytes, FLAC_PIECE_BYTES), samples: Number.POSITIVE_INFINITY }
    case 'ogg-flac':
    case 'ogg-vorbis':
    case 'ogg-opus':
      return readOgg(format, bytes)
  }
}

/** The first samples of a piece. */
const shorten = ({ sampleRate, channels }: Pcm, samples: number): Pcm => ({
  sampleRate,
  channels: channels.map((channel) => channel.subarray(0, samples)),
})

const lengthOf = (pcm: Pcm): number => pcm.channels[0]?.length ?? 0

/** The sound in the bytes, piece by piece. A decoder that gives up in the middle throws; what came before it is good. */
export async function* decodeCompressed(format: Compressed, bytes: Uint8Array): AsyncGenerator<Pcm> {
  const { pieces, samples } = piecesOf(format, bytes)
  const decoder = OPENERS[format]()
  await decoder.ready
  try {
    let made = 0
    let held: Pcm | undefined // the last piece may be too long
    for (const piece of pieces) {
      const pcm = toPcm(await decoder.decode(piece))
      if (pcm === undefined) continue
      if (held !== undefined) yield held
      held = pcm
      made += lengthOf(pcm)
    }
    const last = decoder.flush === undefined ? undefined : toPcm(await decoder.flush())
    if (last !== undefined) {
      if (held !== undefined) yield held
      held = last
      made += lengthOf(last)
    }
    if (held === undefined) return
    const excess = made - samples
    // More than a page too long means that the file began in the middle of a broadcast, whose pages count from its beginning.
    yield excess > 0 && excess < lengthOf(held) ? shorten(held, lengthOf(held) - excess) : held
  } finally {
    decoder.free()
  }
}
