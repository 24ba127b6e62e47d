import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const directory = fileURLToPath(new URL('../test-clips/', import.meta.url))

export type Clip = { readonly file: string; readonly duration: number; readonly text: string }

/** Twelve clips of speech in all formats, one over a minute and one silent, with what is said in them. */
export const clips: readonly Clip[] = JSON.parse(readFileSync(`${directory}transcripts.json`, 'utf8'))

export const clipBytes = (file: string): Buffer => readFileSync(directory + file)

const words = (text: string): string[] => text.toLowerCase().match(/[a-z']+/g) ?? []

/** How many words must be changed, left out or put in to make one text of the other, and how many the first one has. */
export const wordErrors = (said: string, written: string): { errors: number; words: number } => {
  const wanted = words(said)
  const got = words(written)
  let row = got.map((_, at) => at + 1)
  row.unshift(0)
  wanted.forEach((word, at) => {
    const next = [at + 1]
    got.forEach((other, column) => {
      const changed = (row[column] ?? 0) + (word === other ? 0 : 1)
      next.push(Math.min(changed, (row[column + 1] ?? 0) + 1, (next[column] ?? 0) + 1))
    })
    row = next
  })
  return { errors: row.at(-1) ?? 0, words: wanted.length }
}

/** A form as clients send it. */
export const transcriptionForm = (bytes: Uint8Array, fields: Readonly<Record<string, string>> = {}, name = 'clip'): FormData => {
  const form = new FormData()
  form.append('file', new Blob([new Uint8Array(bytes)]), name)
  for (const [key, value] of Object.entries(fields)) form.append(key, value)
  return form
}
