import { median, OTHER_CORE, pin, type Row, residentMb } from '../measure.ts'
import { bodyOf, openStreams } from './load.ts'
import { cpuOf, type System, startBare, startEngines, startParvis } from './systems.ts'

const CHUNKS = 60
const CHUNK_EVERY_MS = 250

type Taken = { readonly cpuPerChunkMicros: number; readonly cores: number; readonly fullMb: number; readonly grownMb: number }

const take = async ({ stream, pids, name }: System, count: number): Promise<Taken> => {
  const mb = (): number => pids.reduce((sum, pid) => sum + residentMb(pid), 0)
  const emptyMb = mb()
  const before = cpuOf(pids)
  const startedAt = performance.now()
  let fullMb = 0
  const answers = await openStreams(stream, bodyOf(stream.model, 1_000, true), count, () => {
    fullMb = mb()
  })
  const micros = cpuOf(pids) - before
  const seconds = (performance.now() - startedAt) / 1000
  const lost = answers.filter(({ events }) => events < CHUNKS)
  if (lost.length > 0) throw new Error(`${lost.length} of ${count} streams through ${name} had not all of their ${CHUNKS} chunks`)
  return { cpuPerChunkMicros: micros / (count * CHUNKS), cores: micros / 1e6 / seconds, fullMb, grownMb: fullMb - emptyMb }
}

/** Many streams open at once, four chunks a second each: what a chunk costs then, what they weigh, and that none is lost. */
export const benchStreams = async (quick: boolean, count = quick ? 200 : 5_000): Promise<Row[]> => {
  pin([process.pid], OTHER_CORE)
  const engines = await startEngines(CHUNKS, CHUNK_EVERY_MS)
  const bare = await startBare(engines)
  const parvis = await startParvis(engines, { streams: count })
  try {
    const taken = { bare: [] as Taken[], parvis: [] as Taken[] }
    for (let round = 0; round < (quick ? 1 : 3); round += 1) {
      taken.bare.push(await take(bare, count))
      taken.parvis.push(await take(parvis, count))
    }
    const of = (system: 'bare' | 'parvis', figure: keyof Taken): number => median(taken[system].map((each) => each[figure]))
    const said = `${count} streams, ${(count * 1000) / CHUNK_EVERY_MS} chunks a second, none lost`
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
        beside: `held ≤ 1; bare ${of('bare', 'cores').toFixed(2)}`,
      },
      {
        what: 'memory of the server, all of them open',
        value: Math.max(...taken.parvis.map(({ fullMb }) => fullMb)),
        unit: 'MiB',
        beside: 'held ≤ 250 MiB for 5,000',
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
