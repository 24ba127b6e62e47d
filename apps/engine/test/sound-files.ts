/** Writers of the formats that can be written by hand, for tests. Samples are from -1 to 1, one array per channel. */

type WavKind = { readonly tag: number; readonly bits: number; write(bytes: Buffer, at: number, sample: number): void }

const muLaw = (sample: number): number => {
  const magnitude = Math.min(32_635, Math.abs(Math.round(sample * 32_768))) + 0x84
  const exponent = Math.max(0, Math.floor(Math.log2(magnitude)) - 7)
  return ~((sample < 0 ? 0x80 : 0) | (exponent << 4) | ((magnitude >> (exponent + 3)) & 0x0f)) & 0xff
}
const aLaw = (sample: number): number => {
  const magnitude = Math.min(32_767, Math.abs(Math.round(sample * 32_768)))
  const exponent = Math.max(0, Math.floor(Math.log2(Math.max(1, magnitude))) - 7)
  const mantissa = exponent === 0 ? magnitude >> 4 : (magnitude >> (exponent + 3)) & 0x0f
  return ((sample < 0 ? 0 : 0x80) | (exponent << 4) | mantissa) ^ 0x55
}

export const WAV_KINDS: Readonly<Record<string, WavKind>> = {
  'PCM 8': { tag: 1, bits: 8, write: (bytes, at, sample) => void bytes.writeUInt8(Math.round(sample * 127) + 128, at) },
  'PCM 16': { tag: 1, bits: 16, write: (bytes, at, sample) => void bytes.writeInt16LE(Math.round(sample * 32_767), at) },
  'PCM 24': { tag: 1, bits: 24, write: (bytes, at, sample) => void bytes.writeIntLE(Math.round(sample * 8_388_607), at, 3) },
  'PCM 32': { tag: 1, bits: 32, write: (bytes, at, sample) => void bytes.writeInt32LE(Math.round(sample * 2_147_483_647), at) },
  'float 32': { tag: 3, bits: 32, write: (bytes, at, sample) => void bytes.writeFloatLE(sample, at) },
  'float 64': { tag: 3, bits: 64, write: (bytes, at, sample) => void bytes.writeDoubleLE(sample, at) },
  'A-law': { tag: 6, bits: 8, write: (bytes, at, sample) => void bytes.writeUInt8(aLaw(sample), at) },
  'mu-law': { tag: 7, bits: 8, write: (bytes, at, sample) => void bytes.writeUInt8(muLaw(sample), at) },
}

export const wavFile = (
  channels: readonly Float32Array[],
  sampleRate: number,
  options: { kind?: WavKind; extensible?: boolean; dataLength?: number; before?: Buffer } = {},
): Buffer => {
  const kind = options.kind ?? (WAV_KINDS['PCM 16'] as WavKind)
  const sampleBytes = kind.bits / 8
  const frames = channels[0]?.length ?? 0
  const data = Buffer.alloc(frames * channels.length * sampleBytes)
  channels.forEach((samples, channel) =>
    samples.forEach((sample, frame) => kind.write(data, (frame * channels.length + channel) * sampleBytes, sample)),
  )
  const format = Buffer.alloc(options.extensible === true ? 40 : 16)
  format.writeUInt16LE(options.extensible === true ? 0xfffe : kind.tag, 0)
  format.writeUInt16LE(channels.length, 2)
  format.writeUInt32LE(sampleRate, 4)
  format.writeUInt32LE(sampleRate * channels.length * sampleBytes, 8)
  format.writeUInt16LE(channels.length * sampleBytes, 12)
  format.writeUInt16LE(kind.bits, 14)
  if (options.extensible === true) {
    format.writeUInt16LE(22, 16)
    format.writeUInt16LE(kind.tag, 24)
  }
  const chunk = (id: string, body: Buffer, length = body.length): Buffer => {
    const head = Buffer.alloc(8)
    head.write(id)
    head.writeUInt32LE(length, 4)
    return Buffer.concat([head, body, Buffer.alloc(body.length % 2)])
  }
  const body = Buffer.concat([
    Buffer.from('WAVE'),
    options.before ?? Buffer.alloc(0),
    chunk('fmt ', format),
    chunk('data', data, options.dataLength ?? data.length),
  ])
  return chunk('RIFF', body)
}

const flacHead = (samples: number, sampleRate: number): Buffer => {
  const info = Buffer.alloc(34)
  info.writeUInt16BE(FLAC_BLOCK, 0)
  info.writeUInt16BE(FLAC_BLOCK, 2)
  // 20 bits of rate, 3 of channels less one, 5 of bits less one, 36 of samples.
  info.writeBigUInt64BE((BigInt(sampleRate) << 44n) | (0n << 41n) | (15n << 36n) | BigInt(samples), 10)
  return Buffer.concat([Buffer.from('fLaC'), Buffer.from([0x80, 0, 0, 34]), info])
}

const flacFrame = (number: number, samples: number, sampleRate: number, subframe: Buffer): Buffer => {
  // The block's length and the rate in 16 bits each at the end of the header, one channel, 16 bits a sample.
  const head = Buffer.from([0xff, 0xf8, 0x7d, 0x08, ...utf8Number(number), 0, 0, 0, 0])
  head.writeUInt16BE(samples - 1, head.length - 4)
  head.writeUInt16BE(sampleRate, head.length - 2)
  const frame = Buffer.concat([head, Buffer.from([crc(head, 0x07, 8)]), subframe])
  const check = Buffer.alloc(2)
  check.writeUInt16BE(crc(frame, 0x8005, 16))
  return Buffer.concat([frame, check])
}

const FLAC_BLOCK = 4096

/** The shortest FLAC that is one: frames of 4,096 samples, nothing compressed (RFC 9639, "verbatim" subframes). */
export const flacFile = (samples: Int16Array, sampleRate: number): Buffer => {
  const parts = [flacHead(samples.length, sampleRate)]
  for (let at = 0; at < samples.length; at += FLAC_BLOCK) {
    const block = samples.subarray(at, at + FLAC_BLOCK)
    const body = Buffer.alloc(1 + block.length * 2)
    body[0] = 0b0000_0010
    block.forEach((sample, index) => body.writeInt16BE(sample, 1 + index * 2))
    parts.push(flacFrame(at / FLAC_BLOCK, block.length, sampleRate, body))
  }
  return Buffer.concat(parts)
}

/** Much silence in few bytes: sixteen for each 65,535 samples ("constant" subframes). */
export const flacSilence = (frames: number, sampleRate: number): Buffer =>
  Buffer.concat([
    flacHead(0, sampleRate),
    ...Array.from({ length: frames }, (_, frame) => flacFrame(frame % 128, 65_535, sampleRate, Buffer.from([0, 0, 0]))),
  ])

const utf8Number = (value: number): number[] => [...Buffer.from(String.fromCodePoint(value))]

const crc = (bytes: Uint8Array, polynomial: number, bits: 8 | 16): number => {
  const mask = 2 ** bits - 1
  let value = 0
  for (const byte of bytes) {
    value ^= byte << (bits - 8)
    for (let bit = 0; bit < 8; bit += 1) value = ((value << 1) ^ (value & (1 << (bits - 1)) ? polynomial : 0)) & mask
  }
  return value
}

/** An MPEG-1 or MPEG-2 program stream around MPEG audio, with a video packet between every two of sound. */
export const programStream = (audio: Uint8Array, version: 1 | 2): Buffer => {
  const packetBytes = 2000
  const pack =
    version === 2
      ? Buffer.from([0, 0, 1, 0xba, 0x44, 0, 4, 0, 4, 1, 0, 0, 3, 0xf8])
      : Buffer.from([0, 0, 1, 0xba, 0x21, 0, 1, 0, 1, 0x80, 0, 1])
  const header = version === 2 ? Buffer.from([0x80, 0x80, 5, 0x21, 0, 1, 0, 1]) : Buffer.from([0xff, 0xff, 0x40, 0x20, 0x21, 0, 1, 0, 1])
  const packet = (id: number, ...parts: Uint8Array[]): Buffer => {
    const body = Buffer.concat(parts)
    return Buffer.concat([Buffer.from([0, 0, 1, id, body.length >> 8, body.length & 255]), body])
  }
  const parts: Buffer[] = []
  for (let at = 0; at < audio.length; at += packetBytes) {
    parts.push(
      pack,
      packet(0xe0, header, Buffer.from([0, 0, 1, 0xb3, 1, 2, 3])),
      packet(0xc0, header, audio.subarray(at, at + packetBytes)),
    )
    parts.push(packet(0xc1, header, Buffer.alloc(20, 9))) // another language
  }
  return Buffer.concat([...parts, Buffer.from([0, 0, 1, 0xb9])])
}

/** A sine, from 0 to `seconds`. */
export const sine = (hertz: number, seconds: number, sampleRate: number, amplitude = 0.5): Float32Array =>
  Float32Array.from({ length: Math.round(seconds * sampleRate) }, (_, at) => amplitude * Math.sin((2 * Math.PI * hertz * at) / sampleRate))
