import { deflateSync } from 'node:zlib'

/** Small files of each kind, as an encoder would write them, of any size and length. */

const chunk = (name: string, data: Buffer): Buffer => {
  const length = Buffer.alloc(4)
  length.writeUInt32BE(data.length)
  // Nobody here checks the checksum.
  return Buffer.concat([length, Buffer.from(name, 'latin1'), data, Buffer.alloc(4)])
}

/** A PNG, with so many bytes of padding behind its head. */
export const png = (width = 1, height = 1, padding = 0): Buffer => {
  const header = Buffer.alloc(13)
  header.writeUInt32BE(width, 0)
  header.writeUInt32BE(height, 4)
  header.set([8, 0, 0, 0, 0], 8)
  const data = deflateSync(Buffer.alloc(2))
  return Buffer.concat([
    Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'),
    chunk('IHDR', header),
    ...(padding === 0 ? [] : [chunk('tEXt', Buffer.alloc(padding, 'x'))]),
    chunk('IDAT', data),
    chunk('IEND', Buffer.alloc(0)),
  ])
}

/** A JPEG as far as anybody reads for its size, with a preface of so many bytes, and turned as a camera would note it. */
export const jpeg = (width = 1, height = 1, options: { preface?: number; orientation?: number } = {}): Buffer => {
  const segment = (marker: number, data: Buffer): Buffer => {
    const head = Buffer.from([0xff, marker, 0, 0])
    head.writeUInt16BE(data.length + 2, 2)
    return Buffer.concat([head, data])
  }
  const prefaces: Buffer[] = []
  for (let left = options.preface ?? 0; left > 0; left -= 60_000) prefaces.push(segment(0xe2, Buffer.alloc(Math.min(left, 60_000), 'x')))
  const exif = Buffer.concat([
    Buffer.from('Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0', 'latin1'),
    Buffer.from([options.orientation ?? 1, 0, 0, 0, 0, 0, 0]),
  ])
  const frame = Buffer.from([8, 0, 0, 0, 0, 1, 1, 0x11, 0])
  frame.writeUInt16BE(height, 1)
  frame.writeUInt16BE(width, 3)
  return Buffer.concat([Buffer.from([0xff, 0xd8]), segment(0xe1, exif), ...prefaces, segment(0xc0, frame), Buffer.from([0xff, 0xd9])])
}

export const webp = (width = 1, height = 1): Buffer => {
  const bytes = Buffer.alloc(30)
  bytes.write('RIFF', 0, 'latin1')
  bytes.write('WEBPVP8X', 8, 'latin1')
  bytes.writeUIntLE(width - 1, 24, 3)
  bytes.writeUIntLE(height - 1, 27, 3)
  return bytes
}

/** A GIF of so many pictures, with palettes and a comment, so that there is something to walk over. */
export const gif = (width = 1, height = 1, pictures = 1): Buffer => {
  const head = Buffer.alloc(13)
  head.write('GIF89a', 0, 'latin1')
  head.writeUInt16LE(width, 6)
  head.writeUInt16LE(height, 8)
  head[10] = 0x80
  const palette = Buffer.alloc(6)
  const comment = Buffer.from([0x21, 0xfe, 3, 0x2c, 0x2c, 0x2c, 0])
  const picture = Buffer.concat([Buffer.from([0x2c, 0, 0, 0, 0, 1, 0, 1, 0, 0x80]), palette, Buffer.from([2, 2, 0x44, 1, 0])])
  return Buffer.concat([head, palette, comment, ...Array.from({ length: pictures }, () => picture), Buffer.from([0x3b])])
}

/** Silence of 8,000 samples of one byte a second. */
export const wav = (seconds: number, options: { lengthUnknown?: boolean } = {}): Buffer => {
  const samples = Math.round(seconds * 8000)
  const head = Buffer.alloc(52)
  head.write('RIFF', 0, 'latin1')
  head.writeUInt32LE(44 + samples, 4)
  head.write('WAVEfmt ', 8, 'latin1')
  head.writeUInt32LE(16, 16)
  head.writeUInt16LE(1, 20)
  head.writeUInt16LE(1, 22)
  head.writeUInt32LE(8000, 24)
  head.writeUInt32LE(8000, 28)
  head.writeUInt16LE(1, 32)
  head.writeUInt16LE(8, 34)
  // A chunk that no reader of sound cares for.
  head.write('JUNK', 36, 'latin1')
  head.write('data', 44, 'latin1')
  head.writeUInt32LE(options.lengthUnknown === true ? 0xffff_ffff : samples, 48)
  return Buffer.concat([head, Buffer.alloc(samples, 0x80)])
}

const MP3_SECONDS = 1152 / 32_000

/** Frames of 32 kbit/s, behind a tag of so many bytes. `counted`: an encoder has written their number into the first. */
export const mp3 = (seconds: number, options: { tag?: number; counted?: number } = {}): Buffer => {
  const frame = Buffer.alloc(144)
  frame.set([0xff, 0xfb, 0x18, 0xc0])
  const first = Buffer.from(frame)
  if (options.counted !== undefined) {
    first.write('Xing', 21, 'latin1')
    first.writeUInt32BE(1, 25)
    first.writeUInt32BE(Math.round(options.counted / MP3_SECONDS), 29)
  }
  const { tag = 0 } = options
  const id3 = Buffer.concat([
    Buffer.from('ID3\x04\0\0', 'latin1'),
    Buffer.from([21, 14, 7, 0].map((shift) => (tag >> shift) & 0x7f)),
    Buffer.alloc(tag),
  ])
  const frames = Array.from({ length: Math.round(seconds / MP3_SECONDS) - 1 }, () => frame)
  return Buffer.concat([...(tag === 0 ? [] : [id3]), first, ...frames])
}

export const dataUrl = (type: string, bytes: Buffer): string => `data:${type};base64,${bytes.toString('base64')}`
