import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as after } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { endsWithUs, familyOf, freePort, median, type Row, residentMb, until } from '../measure.ts'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const CLIP = join(ROOT, 'apps/engine/test-clips/01-short.wav')

const SAMPLE_EVERY_MS = 250
/** At idle is who has not changed by more than this part of itself for so many samples. */
const UNCHANGED = 0.01
const UNCHANGED_SAMPLES = 5
const SETTLE_LIMIT_MS = 60_000

/** What a process is, in a word. */
const kindOf = (pid: number): string => {
  const said = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ')
  const model = /--name (\S+)/.exec(said)?.[1]
  if (model !== undefined) return `engine of ${model}`
  if (said.includes('parvis.mjs')) return 'server'
  if (said.includes('start.mjs')) return 'scripts/start.mjs'
  if (said.startsWith('npm start')) return 'npm'
  return said.includes('postgres') ? 'database, all its processes' : said.trim().slice(0, 40)
}

type Weight = { readonly processes: number; readonly mb: number; readonly sharedOutMb: number }

/** Resident memory in MiB, where a page that several processes hold is divided between them. */
export const sharedOutMb = (pid: number): number =>
  Number(/^Pss:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'))?.[1] ?? Number.NaN) / 1024

const weigh = (parent: number): Map<string, Weight> => {
  const weights = new Map<string, Weight>()
  for (const pid of familyOf(parent)) {
    try {
      const kind = kindOf(pid)
      const before = weights.get(kind) ?? { processes: 0, mb: 0, sharedOutMb: 0 }
      weights.set(kind, {
        processes: before.processes + 1,
        mb: before.mb + residentMb(pid),
        sharedOutMb: before.sharedOutMb + sharedOutMb(pid),
      })
    } catch {
      // It has ended since we read its number.
    }
  }
  return weights
}

const isSame = (one: ReadonlyMap<string, Weight>, other: ReadonlyMap<string, Weight>): boolean =>
  one.size === other.size && [...one].every(([kind, { mb }]) => Math.abs((other.get(kind)?.mb ?? 0) - mb) <= mb * UNCHANGED)

/** What each weighs when nobody has changed for a second; after a minute, what it weighs then. */
const weighSettled = async (parent: number): Promise<{ weights: Map<string, Weight>; settled: boolean }> => {
  const startedAt = performance.now()
  let first = weigh(parent)
  let unchanged = 0
  for (;;) {
    await after(SAMPLE_EVERY_MS)
    const weights = weigh(parent)
    unchanged = isSame(first, weights) ? unchanged + 1 : 0
    if (unchanged === 0) first = weights
    if (unchanged === UNCHANGED_SAMPLES) return { weights, settled: true }
    if (performance.now() - startedAt > SETTLE_LIMIT_MS) return { weights, settled: false }
  }
}

const form = (fields: Readonly<Record<string, string>>, file: Blob): FormData => {
  const made = new FormData()
  for (const [name, value] of Object.entries(fields)) made.set(name, value)
  made.set('file', file, 'clip.wav')
  return made
}

/** A small question for each model of the demo. */
const QUESTIONS: Readonly<Record<string, { readonly path: string; body(): string | FormData }>> = {
  'tiny-chat': {
    path: '/v1/chat/completions',
    body: () => JSON.stringify({ model: 'tiny-chat', max_completion_tokens: 16, messages: [{ role: 'user', content: 'Hello' }] }),
  },
  'tiny-embed': { path: '/v1/embeddings', body: () => JSON.stringify({ model: 'tiny-embed', input: 'Hello' }) },
  'tiny-rerank': {
    path: '/v1/rerank',
    body: () => JSON.stringify({ model: 'tiny-rerank', query: 'Hello', documents: ['Good day', 'Bread'] }),
  },
  'tiny-whisper': {
    path: '/v1/audio/transcriptions',
    body: () => form({ model: 'tiny-whisper' }, new Blob([readFileSync(CLIP)], { type: 'audio/wav' })),
  },
}

type Started = { readonly readyMs: number; readonly servingMs: number; readonly weights: Map<string, Weight>; readonly settled: boolean }

const startOnce = async (dataDir: string, key: string): Promise<Started> => {
  const port = await freePort()
  const origin = `http://127.0.0.1:${port}`
  const authorization = `Bearer ${key}`
  const startedAt = performance.now()
  const child = endsWithUs(
    spawn('npm', ['start'], {
      cwd: ROOT,
      env: {
        ...process.env,
        PARVIS_DATA_DIR: dataDir,
        PARVIS_PORT: String(port),
        PARVIS_LOG_LEVEL: 'error',
        PARVIS_BOOTSTRAP_SECRET_KEY: key,
      },
      stdio: ['ignore', 'ignore', 'inherit'],
    }),
  )
  const ended = new Promise<void>((resolve) => child.on('exit', () => resolve()))
  const pid = child.pid ?? 0
  try {
    await until('the server is ready', async () => (await fetch(`${origin}/ready`)).ok)
    const readyMs = performance.now() - startedAt
    const listed = await fetch(`${origin}/v1/models`, { headers: { authorization } })
    const models = ((await listed.json()) as { data: { id: string }[] }).data.map(({ id }) => id)
    const asked = Object.keys(QUESTIONS)
    if (models.toSorted().join() !== asked.toSorted().join())
      throw new Error(`the demo serves ${models.join(', ')}; asked are ${asked.join(', ')}`)
    for (const [model, { path, body }] of Object.entries(QUESTIONS)) {
      await until(`${model} answers`, async () => {
        const asJson = model === 'tiny-whisper' ? {} : { 'content-type': 'application/json' }
        const answer = await fetch(`${origin}${path}`, { method: 'POST', headers: { authorization, ...asJson }, body: body() })
        await answer.arrayBuffer()
        return answer.ok
      })
    }
    return { readyMs, servingMs: performance.now() - startedAt, ...(await weighSettled(pid)) }
  } finally {
    child.kill('SIGTERM')
    await ended
  }
}

/**
 * From the command that an operator types (`npm start`, on a tree that is built) to ready, with a data directory that has been used before, and what
 * each process weighs when all models of the repository have answered once and nobody moves any more.
 */
export const benchStart = async (quick: boolean): Promise<Row[]> => {
  const dataDir = mkdtempSync(join(tmpdir(), 'parvis-bench-start-'))
  const key = randomUUID() // the first start takes it, the others know it
  try {
    const first = await startOnce(dataDir, key)
    const again: Started[] = []
    for (let round = 0; round < (quick ? 1 : 5); round += 1) again.push(await startOnce(dataDir, key))
    const figures = (figure: 'readyMs' | 'servingMs'): string =>
      `${again.map((each) => (each[figure] / 1000).toFixed(1)).join(', ')} s; the first start of all ${(first[figure] / 1000).toFixed(1)} s`
    const kinds = [...(again.at(-1)?.weights.keys() ?? [])]
    const moved = again.filter(({ settled }) => !settled).length
    return [
      {
        what: 'npm start to ready, warm data directory',
        value: median(again.map(({ readyMs }) => readyMs)) / 1000,
        unit: 's',
        beside: `held < 5 s; ${figures('readyMs')}`,
        cliff: { above: 60, why: 'a restart is a gap in service' },
      },
      {
        what: '  until each model of the demo has answered',
        value: median(again.map(({ servingMs }) => servingMs)) / 1000,
        unit: 's',
        beside: `${kinds.filter((kind) => kind.startsWith('engine')).length} engines, loaded one after another; ${figures('servingMs')}`,
      },
      ...kinds.map((kind): Row => {
        const weights = again.flatMap(({ weights }) => weights.get(kind) ?? [])
        const shared = `${median(weights.map((each) => each.sharedOutMb)).toFixed(0)} MiB when what several hold is divided`
        const processes = median(weights.map((each) => each.processes))
        const still = moved === 0 ? '' : `; in ${moved} of ${again.length} starts somebody was still moving`
        return {
          what: `memory at idle: ${kind}`,
          value: median(weights.map(({ mb }) => mb)),
          unit: 'MiB',
          beside: `resident${processes === 1 ? '' : ` in ${processes} processes`}, ${shared}${still}`,
        }
      }),
    ]
  } finally {
    rmSync(dataDir, { recursive: true, force: true })
  }
}
