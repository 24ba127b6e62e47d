import { closeSync, constants, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { median, OTHER_CORE, percentile, pin, type Row, residentMb } from '../measure.ts'
import { type Answer, bodyOf, closedLoop, openLoop, pictureOf, type Target } from './load.ts'
import { cpuOf, direct, type Engines, type System, startBare, startEngines, startNginx, startParvis, startPortkey } from './systems.ts'

const CHUNKS = 200
const CHUNK_EVERY_MS = 5

type Case = {
  readonly what: string
  readonly kind: 'whole' | 'stream'
  readonly body: (model: string) => string
  readonly clients: number
  readonly requests: number
  /** Of a request's processor time, how much is one of what we count: a chunk of a stream. */
  readonly parts: number
  /** Times nginx: what we hold ourselves to (performance.md 1), and where CI fails, with room for a machine that is busy. */
  readonly held: number
  readonly cliff: number
}

const casesOf = (quick: boolean): readonly Case[] => [
  {
    what: 'JSON, 1 KB in, 2 KB out',
    kind: 'whole',
    body: (model) => bodyOf(model, 1_000, false),
    clients: 32,
    requests: quick ? 2_000 : 10_000,
    parts: 1,
    held: 4,
    cliff: 30,
  },
  // One that waits for the disk has nothing to do in between with fewer, and going to sleep and waking up is processor time as well.
  {
    what: 'JSON, with twice as many clients',
    kind: 'whole',
    body: (model) => bodyOf(model, 1_000, false),
    clients: 64,
    requests: quick ? 2_000 : 10_000,
    parts: 1,
    held: 4,
    cliff: 30,
  },
  {
    what: 'JSON, 20 KB in',
    kind: 'whole',
    body: (model) => bodyOf(model, 20_000, false),
    clients: 16,
    requests: quick ? 500 : 4_000,
    parts: 1,
    held: 3,
    cliff: 30,
  },
  {
    what: 'an image of 1 MB in',
    kind: 'whole',
    body: (model) => pictureOf(model, 1_000_000),
    clients: 8,
    requests: quick ? 80 : 400,
    parts: 1,
    held: 3,
    cliff: 15,
  },
  {
    what: 'a streamed chunk',
    kind: 'stream',
    body: (model) => bodyOf(model, 1_000, true),
    clients: 32,
    requests: quick ? 64 : 256,
    parts: CHUNKS,
    held: 2.2,
    cliff: 7,
  },
]

/** Processor time of each system in each round: in turns, since a figure from another minute is not a baseline. */
const inTurns = async (systems: readonly System[], each: Case, rounds: number): Promise<Map<string, number[]>> => {
  const taken = new Map<string, number[]>(systems.map(({ name }) => [name, []]))
  for (let round = 0; round <= rounds; round += 1) {
    for (const system of systems) {
      const target = system[each.kind]
      const before = cpuOf(system.pids)
      const answers = await closedLoop(target, each.body(target.model), each.clients, each.requests)
      const lost = each.kind === 'stream' ? answers.filter(({ events }) => events < CHUNKS).length : 0
      if (lost > 0) throw new Error(`${lost} of ${answers.length} streams through ${system.name} had not all of their ${CHUNKS} chunks`)
      // The first round warms up: the heavy paths need thousands of calls before V8 settles.
      if (round > 0) taken.get(system.name)?.push((cpuOf(system.pids) - before) / each.requests / each.parts)
    }
  }
  return taken
}

const costRows = async (systems: readonly System[], quick: boolean): Promise<Row[]> => {
  const rows: Row[] = []
  for (const each of casesOf(quick)) {
    // Portkey is beside us for whole answers only: it answers a stream of these engines with an error of its own.
    const beside = systems.filter(({ name }) => each.kind === 'whole' || name !== 'Portkey')
    const taken = await inTurns(beside, each, quick ? 2 : 7)
    const of = (name: string): number[] => taken.get(name) ?? []
    const others = beside.filter(({ name }) => name !== 'parvis').map(({ name }) => `${name} ${median(of(name)).toFixed(1)} µs`)
    // Round by round: what disturbed one of the two has mostly disturbed the other, too.
    const against = (name: string): number => median(of('parvis').map((micros, round) => micros / (of(name)[round] ?? Number.NaN)))
    rows.push({ what: `CPU of ${each.what}`, value: median(of('parvis')), unit: 'µs', beside: others.join(', ') })
    const times = beside.filter(({ name }) => name !== 'parvis' && name !== 'nginx')
    rows.push({
      what: '  against nginx',
      value: against('nginx'),
      unit: '×',
      beside: [`held ≤ ${each.held} ×`, ...times.map(({ name }) => `against ${name} ${against(name).toFixed(2)} ×`)].join('; '),
      cliff: { above: each.cliff, why: 'bytes pass through; what we add to a request must stay small beside them' },
    })
  }
  return rows
}

const BODY_BYTES = 1_000
const SYNCED_BYTES = 700
const SYNCS = 200

/** How long this disk takes to have an event, in a file that becomes longer by it or, as the journal's, has room for it: beside it stands what the journal makes a client wait. */
const syncMs = (directory: string, room: boolean): number => {
  const bytes = Buffer.alloc(SYNCED_BYTES, 1)
  const file = openSync(join(directory, room ? 'room' : 'longer'), constants.O_WRONLY | constants.O_CREAT | constants.O_DSYNC)
  if (room) writeSync(file, Buffer.alloc(SYNCS * bytes.length))
  const tookMs = Array.from({ length: SYNCS }, (_, index) => {
    const startedAt = performance.now()
    writeSync(file, bytes, 0, bytes.length, index * bytes.length)
    return performance.now() - startedAt
  })
  closeSync(file)
  return median(tookMs)
}

/** In memory a sync costs nothing, so what a server there adds is all but the wait for the disk. */
const MEMORY_DIR = '/dev/shm'

const latencyRows = async (engines: Engines, onDisk: System, quick: boolean): Promise<Row[]> => {
  const inMemory = await startParvis(engines, { directory: MEMORY_DIR })
  const scratch = mkdtempSync(join(tmpdir(), 'parvis-bench-sync-'))
  const perSecond = quick ? 250 : 1_000
  const seconds = quick ? 2 : 5
  try {
    const none = direct(engines)
    const of = (answers: readonly Answer[], percent: number, figure: 'firstByteMs' | 'lastByteMs'): number =>
      percentile(
        answers.map((answer) => answer[figure]),
        percent,
      )
    const whole = new Map<System, Answer[][]>([none, inMemory, onDisk].map((system) => [system, []]))
    const first = new Map<System, Answer[][]>([none, inMemory].map((system) => [system, []]))
    const stream = (target: Target): string => bodyOf(target.model, BODY_BYTES, true)
    for (let round = 0; round <= (quick ? 2 : 7); round += 1) {
      for (const [system, rounds] of whole) {
        const answers = await openLoop(system.whole, bodyOf(system.whole.model, BODY_BYTES, false), perSecond, seconds)
        if (round > 0) rounds.push(answers)
      }
      for (const [system, rounds] of first) {
        const answers = await closedLoop(system.stream, stream(system.stream), 1, quick ? 3 : 10)
        if (round > 0) rounds.push(answers)
      }
    }
    const added = (
      from: Map<System, Answer[][]>,
      system: System,
      beside: System,
      percent: number,
      figure: 'firstByteMs' | 'lastByteMs',
    ): number =>
      median(
        (from.get(system) ?? []).map(
          (answers, round) => of(answers, percent, figure) - of(from.get(beside)?.[round] ?? [], percent, figure),
        ),
      )
    const load = `${perSecond} requests a second, open loop`
    const [syncedMs, longerMs] = [true, false].map((room) => syncMs(scratch, room).toFixed(2))
    return [
      {
        what: 'added latency before the journal, p50',
        value: added(whole, inMemory, none, 50, 'lastByteMs'),
        unit: 'ms',
        beside: `held ≤ 0.5 ms; the engine called directly; ${load}`,
      },
      { what: '  the same, p99', value: added(whole, inMemory, none, 99, 'lastByteMs'), unit: 'ms', beside: load },
      {
        what: 'the wait for the journal, p50',
        value: added(whole, onDisk, inMemory, 50, 'lastByteMs'),
        unit: 'ms',
        beside: `held ≤ two syncs and 0.5 ms; one sync of this disk takes ${syncedMs} ms, ${longerMs} ms where a file becomes longer; beside the same server in memory`,
      },
      {
        what: 'added to the first token, p50',
        value: added(first, inMemory, none, 50, 'firstByteMs'),
        unit: 'ms',
        beside: 'held ≤ 1 ms; one stream at a time, the engine called directly',
      },
    ]
  } finally {
    await inMemory.stop()
    rmSync(scratch, { recursive: true, force: true })
  }
}

/** What the gateway adds and costs: beside nginx, the bare proxy and, without `quick`, a gateway that many run. */
export const benchPath = async (quick: boolean): Promise<Row[]> => {
  pin([process.pid], OTHER_CORE)
  const engines = await startEngines(CHUNKS, CHUNK_EVERY_MS)
  const running: System[] = []
  try {
    running.push(await startNginx(engines), await startBare(engines))
    if (!quick) running.push(await startPortkey(engines))
    const parvis = await startParvis(engines)
    running.push(parvis)
    const idleMb = residentMb(parvis.pid)
    const cost = await costRows(running, quick)
    const latency = await latencyRows(engines, parvis, quick)
    return [
      ...cost,
      ...latency,
      { what: 'memory of the server, idle', value: idleMb, unit: 'MiB', beside: 'resident, without engines and database' },
      { what: 'memory of the server, after the load', value: residentMb(parvis.pid), unit: 'MiB', beside: 'resident' },
      {
        what: 'memory of the embedded database',
        value: parvis.beside().reduce((sum, pid) => sum + residentMb(pid), 0),
        unit: 'MiB',
        beside: 'resident, all its processes added up, what they share counted for each',
      },
    ]
  } finally {
    for (const system of running.toReversed()) await system.stop()
    await engines.stop()
  }
}
