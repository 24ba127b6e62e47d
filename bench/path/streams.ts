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

const take = async (system: System, count: number, { chunks, lookMs }: typeof FULL): Promise<Taken> => {
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
  const { answers, seen } = await openStreams(stream, bodyOf(stream.model, 1_000, true), count, look)
  const lost = lostOf(system, answers, chunks)
  if (lost !== undefined) throw new Error(lost)
  await system.booked(since, count)
  return seen
}

/** Many streams open at once, four chunks a second each: what a chunk costs then, what they weigh, and that none is lost. */
export const benchStreams = async (quick: boolean, count = quick ? 256 : 5_000): Promise<Row[]> => {
  const size = quick ? QUICK : FULL
  const engines = await startEngines(size.chunks, CHUNK_EVERY_MS)
  const bare = await startBare(engines)
  const parvis = await startParvis(engines, { streams: count })
  try {
    const taken = { bare: [] as Taken[], parvis: [] as Taken[] }
    for (let round = 0; round < (quick ? 1 : 3); round += 1) {
      taken.bare.push(await take(bare, count, size))
      taken.parvis.push(await take(parvis, count, size))
    }
    const of = (system: 'bare' | 'parvis', figure: keyof Taken): number => median(taken[system].map((each) => each[figure]))
    const said = `${count} streams, ${of('parvis', 'pace').toFixed(0)} chunks a second, none lost`
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
        value: Math.max(...taken.parvis.map(({ fullMb }) => fullMb)),
        unit: 'MiB',
        beside: `goal ≤ 250 MB (238 MiB) for 5,000, budget ≤ 300 MB (286 MiB); bare ${Math.max(...taken.bare.map(({ fullMb }) => fullMb)).toFixed(0)} MiB`,
      },
      {
        what: '  of that, a stream',
        // Only the first round finds an empty process; later ones have its memory already.
        value: (Math.max(...taken.parvis.map(({ grownMb }) => grownMb)) * 1024) / count,
        unit: 'KiB',
        beside: `bare ${((Math.max(...taken.bare.map(({ grownMb }) => grownMb)) * 1024) / count).toFixed(0)} KiB; with both sockets`,
        cliff: { above: 400, why: 'what we add to a stream must stay below what its sockets weigh' },
      },
    ]
  } finally {
    await parvis.stop()
    await bare.stop()
    await engines.stop()
  }
}
