import { setTimeout } from 'node:timers/promises'
import { systemClock } from '@parvis/server/kit/clock'
import { median, type Row, residentMb } from '../measure.ts'
import { bodyOf, openStreams, type Running } from './load.ts'
import { cpuOf, lostOf, type System, startBare, startEngines, startParvis } from './systems.ts'

const CHUNK_EVERY_MS = 250
const WEIGH_EVERY_MS = 500
/** Chunks of a stream, and how long is looked when all are open; the first of them ends later than that. */
const FULL = { chunks: 80, lookMs: 8_000 }
const QUICK = { chunks: 20, lookMs: 2_000 }

type Taken = {
  readonly cpuPerChunkMicros: number
  readonly cores: number
  readonly pace: number
  readonly fullMb: number
  readonly grownMb: number
}

/** An engine that counts once, at the end, as OpenAI does; and one that counts as it goes, as vLLM does when we ask it to, which has the longer prompts. */
const CASES = [
  { counts: false, promptBytes: 1_000, engine: 'an engine that counts at the end, prompts of 1 KB' },
  { counts: true, promptBytes: 20_000, engine: 'an engine that counts as it goes, prompts of 20 KB' },
] as const
type Case = (typeof CASES)[number]

const take = async (system: System, count: number, { promptBytes }: Case, { chunks, lookMs }: typeof FULL): Promise<Taken> => {
  const { stream, streamPids: pids, name } = system
  const mb = (): number => pids.reduce((sum, pid) => sum + residentMb(pid), 0)
  const emptyMb = mb()
  const look = async ({ heard, ended }: Running): Promise<Taken> => {
    let fullMb = mb()
    const [cpu, before, startedAt] = [cpuOf(pids), heard(), performance.now()]
    while (performance.now() - startedAt < lookMs) {
      await setTimeout(WEIGH_EVERY_MS)
      fullMb = Math.max(fullMb, mb())
    }
    const [micros, more, ms] = [cpuOf(pids) - cpu, heard() - before, performance.now() - startedAt]
    if (ended() > 0) throw new Error(`${ended()} of ${count} streams through ${name} ended while they were looked at`)
    return { cpuPerChunkMicros: micros / more, cores: micros / 1000 / ms, pace: (more * 1000) / ms, fullMb, grownMb: fullMb - emptyMb }
  }
  const since = systemClock.now()
  const { answers, seen } = await openStreams(stream, bodyOf(stream.model, promptBytes, true), count, look)
  const lost = lostOf(system, answers, chunks)
  if (lost !== undefined) throw new Error(lost)
  await system.booked(since, count)
  return seen
}

/** Many streams open at once, four chunks a second each: what a chunk costs then, what they weigh, and that none is lost. */
export const benchStreams = async (quick: boolean, count = quick ? 256 : 5_000): Promise<Row[]> => {
  const rows: Row[] = []
  for (const each of quick ? CASES.slice(0, 1) : CASES) rows.push(...(await rowsOf(each, count, quick)))
  return rows
}

const rowsOf = async (each: Case, count: number, quick: boolean): Promise<Row[]> => {
  const size = quick ? QUICK : FULL
  const engines = await startEngines(size.chunks, CHUNK_EVERY_MS, each.counts)
  const bare = await startBare(engines)
  const parvis = await startParvis(engines, { streams: count })
  try {
    const taken = { bare: [] as Taken[], parvis: [] as Taken[] }
    for (let round = 0; round < (quick ? 1 : 3); round += 1) {
      taken.bare.push(await take(bare, count, each, size))
      taken.parvis.push(await take(parvis, count, each, size))
    }
    const of = (system: 'bare' | 'parvis', figure: keyof Taken): number => median(taken[system].map((one) => one[figure]))
    const most = (system: 'bare' | 'parvis', figure: keyof Taken): number => Math.max(...taken[system].map((one) => one[figure]))
    const said = `${count} streams, ${of('parvis', 'pace').toFixed(0)} chunks a second, none lost; ${each.engine}`
    return [
      {
        what: 'CPU of a chunk, many streams open',
        value: of('parvis', 'cpuPerChunkMicros'),
        unit: 'µs',
        beside: `${said}; bare ${of('bare', 'cpuPerChunkMicros').toFixed(1)} µs`,
      },
      {
        what: '  the share of a core that they take',
        value: of('parvis', 'cores'),
        unit: 'core',
        beside: `held ≤ 1; bare ${of('bare', 'cores').toFixed(2)}, ${of('bare', 'pace').toFixed(0)} chunks a second`,
      },
      {
        what: 'memory of the server, all of them open',
        value: most('parvis', 'fullMb'),
        unit: 'MiB',
        beside: `goal ≤ 250 MB (238 MiB) for 5,000, budget ≤ 300 MB (286 MiB); bare ${most('bare', 'fullMb').toFixed(0)} MiB`,
      },
      {
        what: '  of that, a stream',
        // Only the first round finds an empty process; later ones have its memory already.
        value: (most('parvis', 'grownMb') * 1024) / count,
        unit: 'KiB',
        beside: `bare ${((most('bare', 'grownMb') * 1024) / count).toFixed(0)} KiB; with both sockets`,
        cliff: { above: 400, why: 'what we add to a stream must stay below what its sockets weigh' },
      },
    ]
  } finally {
    await parvis.stop()
    await bare.stop()
    await engines.stop()
  }
}
