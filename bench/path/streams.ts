import { setTimeout } from 'node:timers/promises'
import { median, OTHER_CORE, pin, type Row, residentMb } from '../measure.ts'
import { bodyOf, openStreams } from './load.ts'
import { cpuOf, type System, startBare, startEngines, startParvis } from './systems.ts'

const CHUNK_EVERY_MS = 250
/** Chunks of a stream, and how long is looked when all are open; the first of them ends later than that. */
const FULL = { chunks: 80, lookMs: 8_000 }
const QUICK = { chunks: 30, lookMs: 3_000 }

type Taken = {
  readonly cpuPerChunkMicros: number
  readonly cores: number
  readonly pace: number
  readonly fullMb: number
  readonly grownMb: number
}

const take = async ({ stream, pids, name }: System, count: number, { chunks, lookMs }: typeof FULL): Promise<Taken> => {
  const mb = (): number => pids.reduce((sum, pid) => sum + residentMb(pid), 0)
  const emptyMb = mb()
  let taken: Taken | undefined
  const look = async (heard: () => number): Promise<void> => {
    const fullMb = mb()
    const [cpu, before, startedAt] = [cpuOf(pids), heard(), performance.now()]
    await setTimeout(lookMs)
    const [micros, more, ms] = [cpuOf(pids) - cpu, heard() - before, performance.now() - startedAt]
    taken = { cpuPerChunkMicros: micros / more, cores: micros / 1000 / ms, pace: (more * 1000) / ms, fullMb, grownMb: fullMb - emptyMb }
  }
  const answers = await openStreams(stream, bodyOf(stream.model, 1_000, true), count, (heard) => void look(heard))
  const lost = answers.filter(({ events }) => events < chunks)
  if (lost.length > 0) throw new Error(`${lost.length} of ${count} streams through ${name} had not all of their ${chunks} chunks`)
  if (taken === undefined) throw new Error(`the streams through ${name} ended before they could be looked at`)
  return taken
}

/** Many streams open at once, four chunks a second each: what a chunk costs then, what they weigh, and that none is lost. */
export const benchStreams = async (quick: boolean, count = quick ? 200 : 5_000): Promise<Row[]> => {
  pin([process.pid], OTHER_CORE)
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
        beside: `held ≤ 250 MiB for 5,000; bare ${Math.max(...taken.bare.map(({ fullMb }) => fullMb)).toFixed(0)} MiB`,
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
