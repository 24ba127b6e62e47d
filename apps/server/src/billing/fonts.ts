import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { promisify } from 'node:util'
import { inflate } from 'node:zlib'
import * as fontkit from 'fontkit'

const inflated = promisify(inflate)
const require = createRequire(import.meta.url)

/** A face that a document can print with: the name under which it is known there, and the file behind it unless every reader has it. */
export type Face = { readonly name: string; readonly bytes: Buffer | undefined }

/** The fonts that every reader has know the characters of Windows-1252. */
const BUILT_IN = /^[\n\x20-\x7e\xa0-\xff€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]*$/u

/** In the order in which they are tried: the second is the handsomer, the last has nearly all that Unicode has, drawn on a grid. */
const FILES = [
  { name: 'dejavu', bold: false, path: () => require.resolve('@fontsource/dejavu-sans/files/dejavu-sans-latin-400-normal.woff') },
  { name: 'dejavu-bold', bold: true, path: () => require.resolve('@fontsource/dejavu-sans/files/dejavu-sans-latin-700-normal.woff') },
  { name: 'unifont', bold: undefined, path: () => require.resolve('@fontsource/unifontex/files/unifontex-latin-400-normal.woff') },
] as const

const HEADER_BYTES = 44
const ENTRY_BYTES = 20
const SFNT_HEADER_BYTES = 12
const SFNT_ENTRY_BYTES = 16

/**
 * A packed web font (WOFF 1.0) as the plain font in it. The library that reads fonts would unpack a table anew for every letter, which
 * takes seconds on the thread that serves requests.
 */
const unpack = async (woff: Buffer): Promise<Buffer> => {
  const count = woff.readUInt16BE(12)
  const head = Buffer.alloc(SFNT_HEADER_BYTES + SFNT_ENTRY_BYTES * count)
  const power = Math.floor(Math.log2(count))
  head.writeUInt32BE(woff.readUInt32BE(4), 0)
  head.writeUInt16BE(count, 4)
  head.writeUInt16BE(2 ** power * SFNT_ENTRY_BYTES, 6)
  head.writeUInt16BE(power, 8)
  head.writeUInt16BE((count - 2 ** power) * SFNT_ENTRY_BYTES, 10)
  const tables: Buffer[] = [head]
  let offset = head.length
  for (let index = 0; index < count; index += 1) {
    const from = HEADER_BYTES + ENTRY_BYTES * index
    const to = SFNT_HEADER_BYTES + SFNT_ENTRY_BYTES * index
    const [at, packedBytes, bytes] = [woff.readUInt32BE(from + 4), woff.readUInt32BE(from + 8), woff.readUInt32BE(from + 12)]
    const packed = woff.subarray(at, at + packedBytes)
    const padding = (4 - (bytes % 4)) % 4
    tables.push(packedBytes < bytes ? await inflated(packed) : packed, Buffer.alloc(padding))
    woff.copy(head, to, from, from + 4) // the tag
    woff.copy(head, to + 4, from + 16, from + 20) // the checksum
    head.writeUInt32BE(offset, to + 8)
    head.writeUInt32BE(bytes, to + 12)
    offset += bytes + padding
  }
  return Buffer.concat(tables)
}

type Known = Face & { readonly bold: boolean | undefined; has(letter: string): boolean }

const load = async ({ name, bold, path }: (typeof FILES)[number]): Promise<Known> => {
  const bytes = await unpack(await readFile(path()))
  const font = fontkit.create(bytes)
  if (!('hasGlyphForCodePoint' in font)) throw new Error(`The font ${name} is several fonts.`)
  return { name, bytes, bold, has: (letter) => font.hasGlyphForCodePoint(letter.codePointAt(0) ?? 0) }
}

// Marks of direction and joining, and control characters, have no picture of their own.
const INVISIBLE = /[\p{Cf}\p{Cc}]/gu

/** What is printed, and with which face: a text is of one face, so that a name does not look patched. */
export type Printed = { readonly text: string; readonly face: Face }

/**
 * Finds faces for texts. Most documents need none but the built-in ones; the others are read, and put into the document, only where a
 * name is written in letters that those lack. A letter that nobody has becomes a question mark: a gap would hide that something is missing.
 */
export const openFaces = () => {
  const loaded = new Map<string, Promise<Known>>()
  const get = (file: (typeof FILES)[number]): Promise<Known> => {
    const known = loaded.get(file.name) ?? load(file)
    loaded.set(file.name, known)
    return known
  }
  return async (given: string, bold: boolean): Promise<Printed> => {
    const text = given.normalize('NFC').replace(INVISIBLE, (mark) => (mark === '\n' ? mark : ''))
    if (BUILT_IN.test(text)) return { text, face: { name: bold ? 'Helvetica-Bold' : 'Helvetica', bytes: undefined } }
    let face: Known | undefined
    for (const file of FILES) {
      if (file.bold === !bold) continue
      face = await get(file)
      if (Array.from(text).every((letter) => letter === '\n' || face?.has(letter) === true)) return { text, face }
    }
    const last = face ?? (await get(FILES[2]))
    return { text: Array.from(text, (letter) => (letter === '\n' || last.has(letter) ? letter : '?')).join(''), face: last }
  }
}
