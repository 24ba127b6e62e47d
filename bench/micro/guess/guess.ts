import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Bench } from 'tinybench'
import { bufferToBody } from '../../../apps/server/src/inference/body.ts'
import { guessUnseen, mixOf, openGuesses } from '../../../apps/server/src/inference/guess.ts'
import { startEngine } from '../../engine/engine.ts'
import { percentile, type Row } from '../../measure.ts'

const ROOT = fileURLToPath(new URL('../../..', import.meta.url))
/** One README in twelve languages: what people write, and on every developer's disk. */
const LANGUAGES = join(ROOT, 'node_modules/@biomejs/biome')
const OURS = [
  'README.md',
  'docs/paths.md',
  'apps/server/src/inference/exchange.ts',
  'apps/server/migrations/0004-usage.sql',
  'package-lock.json',
]
const PART_CHARACTERS = 1_500
const PARTS = 8
const BATCH = 100

type Text = { readonly kind: string; readonly text: string }

const partsOf = (kind: string, text: string): Text[] =>
  Array.from({ length: Math.min(PARTS, Math.floor(text.length / PART_CHARACTERS)) }, (_, part) => ({
    kind,
    text: text.slice(part * PART_CHARACTERS, (part + 1) * PART_CHARACTERS),
  }))

const texts = (): Text[] => [
  ...readdirSync(LANGUAGES)
    .filter((name) => /^README.*\.md$/.test(name))
    .toSorted()
    .flatMap((name) => partsOf(name, readFileSync(join(LANGUAGES, name), 'utf8'))),
  ...OURS.flatMap((name) => partsOf(name, readFileSync(join(ROOT, name), 'utf8'))),
]

/** In an order that is the same every time. */
const shuffled = (given: readonly Text[]): Text[] =>
  given
    .map((text, index) => ({ text, at: Math.imul(index + 1, 2_654_435_761) >>> 0 }))
    .toSorted((one, other) => one.at - other.at)
    .map(({ text }) => text)

const mixOfText = (text: string) => {
  const bytes = Buffer.from(JSON.stringify([{ role: 'user', content: text }]))
  return { bytes: bytes.length, mix: mixOf(bufferToBody(bytes), [{ start: 0, end: bytes.length }]) }
}

/** How near a guess comes to the tokenizer of tiny-chat, whose vocabulary is small and knows one script; and what guessing costs. */
export const benchGuess = async (quick: boolean): Promise<Row[]> => {
  const engine = await startEngine()
  const rounds = quick ? 2 : 4
  const errors: { guessed: number; naive: number; beyond: boolean }[] = []
  try {
    const count = async (text: string): Promise<number> => {
      const answer = await fetch(`http://127.0.0.1:${engine.port}/tokenize`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', authorization: `Bearer ${engine.key}` },
        body: JSON.stringify({ model: 'tiny-chat', messages: [{ role: 'user', content: text }] }),
      })
      return ((await answer.json()) as { count: number }).count
    }
    const guesses = openGuesses()
    const all = shuffled(texts())
    for (let round = 0; round < rounds; round += 1) {
      for (const { text } of all) {
        const truth = await count(text)
        const { bytes, mix } = mixOfText(text)
        const { tokens, most } = guesses.guess('tiny-chat', mix)
        // The first round is what it learns from.
        if (round > 0) errors.push({ guessed: (tokens - truth) / truth, naive: (bytes / 4 - truth) / truth, beyond: truth > most })
        guesses.learn('tiny-chat', mix, truth)
      }
    }
  } finally {
    await engine.stop()
  }

  const bodies = [100, 1_000, 100_000].map((bytes) => {
    const text = 'Where is the key that I gave you, and who has it now? '.repeat(bytes / 50)
    const body = bufferToBody(Buffer.from(JSON.stringify([{ role: 'user', content: text.slice(0, bytes) }])))
    return { bytes, body, span: { start: 0, end: body.bytes } }
  })
  const bench = new Bench({ time: quick ? 300 : 1_500, warmupTime: quick ? 200 : 500 })
  for (const { bytes, body, span } of bodies) {
    bench.add(`to guess ${bytes / 1000} KB`, () => {
      for (let round = 0; round < BATCH; round += 1) guessUnseen('', mixOf(body, [span]))
    })
  }
  await bench.run()

  const off = (of: (error: (typeof errors)[number]) => number, percent: number): number =>
    percentile(
      errors.map((error) => Math.abs(of(error)) * 100),
      percent,
    )
  return [
    {
      what: 'a guess is off by, median',
      value: off(({ guessed }) => guessed, 50),
      unit: '%',
      beside: `bytes / 4: ${off(({ naive }) => naive, 50).toFixed(0)} %; ${errors.length} texts in 12 languages, code, SQL, JSON`,
      cliff: { above: 25, why: 'a guess that is far off refuses what fits, or lets in what does not' },
    },
    {
      what: 'the same, p95',
      value: off(({ guessed }) => guessed, 95),
      unit: '%',
      beside: `bytes / 4: ${off(({ naive }) => naive, 95).toFixed(0)} %`,
    },
    {
      what: 'texts longer than the most that was guessed',
      value: (errors.filter(({ beyond }) => beyond).length / errors.length) * 100,
      unit: '%',
      beside: 'what a budget has in reserve',
      cliff: { above: 15, why: 'budgets reserve this much and no more' },
    },
    ...bench.tasks.map((task) => ({
      what: task.name,
      value: task.result.state === 'completed' ? (task.result.latency.p50 * 1000) / BATCH : Number.NaN,
      unit: 'µs',
      beside: 'look at the bytes and multiply',
      cliff: { above: 50, why: 'it stands before every admission' },
    })),
  ]
}
