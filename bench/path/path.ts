import { closeSync, constants, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemClock } from '@parvis/server/kit/clock'
import { median, percentile, type Row, residentMb } from '../measure.ts'
import { type Answer, bodyOf, closedLoop, openLoop, pictureOf, type Target } from './load.ts'
import {
  besideCpuOf,
  cpuOf,
  direct,
  lostOf,
  type System,
  startBare,
  startEngines,
  startNginx,
  startParvis,
  startPortkey,
} from './systems.ts'

const CLIENTS = 32
/** Requests after which V8 has settled. */
const SETTLED_AFTER = 10_000
const CHUNKS = 200
const CHUNK_EVERY_MS = 5

type Case = {
  readonly what: string
  readonly kind: 'whole' | 'stream'
  readonly body: (model: string) => string
  readonly clients: number
  readonly requests: number
  /** The heavy paths need thousands of calls before V8 settles: what comes first is not counted. */
  readonly warmUp: number
  /** Of a request's processor time, how much is one of what we count: a chunk of a stream. */
  readonly parts: number
  /** Times nginx: what we want, what we hold ourselves to, where it says something, and where CI fails, with room for a machine that is busy. */
  readonly goal: number
  readonly budget: number | undefined
  readonly cliff: number
}

const casesOf = (quick: boolean): readonly Case[] => {
  const json: Case = {
    what: 'JSON, 1 KB in, 2 KB out',
    kind: 'whole',
    body: (model) => bodyOf(model, 1_000, false),
    clients: CLIENTS,
    requests: quick ? 5_000 : 10_000,
    warmUp: SETTLED_AFTER,
    parts: 1,
    goal: 3,
    budget: 4,
    cliff: 12,
  }
  return [
    json,
    // One that waits for the disk has nothing to do in between with fewer, and going to sleep and waking up is processor time as well.
    { ...json, what: 'JSON, with twice as many clients', clients: 2 * CLIENTS, warmUp: quick ? 2_000 : 10_000 },
    {
      what: 'JSON, 20 KB in',
      kind: 'whole',
      body: (model) => bodyOf(model, 20_000, false),
      clients: 16,
      // At the end of a round the last events have to be booked: in 4,000 requests that wait is 2 µs of each.
      requests: quick ? 2_000 : 12_000,
      warmUp: quick ? 3_000 : 8_000,
      parts: 1,
      goal: 2,
      budget: undefined,
      cliff: 14,
    },
    {
      what: 'an image of 1 MB in',
      kind: 'whole',
      body: (model) => pictureOf(model, 1_000_000),
      clients: 8,
      requests: quick ? 80 : 400,
      warmUp: quick ? 200 : 400,
      parts: 1,
      goal: 2,
      budget: 3,
      cliff: 7,
    },
    {
      what: 'a streamed chunk',
      kind: 'stream',
      body: (model) => bodyOf(model, 1_000, true),
      clients: CLIENTS,
      requests: quick ? 32 : 256,
      warmUp: quick ? 32 : 256,
      parts: CHUNKS,
      goal: 1.7,
      budget: 2.2,
      cliff: 6,
    },
  ]
}

/** Processor time of a round: microseconds for each of what is counted, and all milliseconds of what works beside it. */
type Taken = { readonly micros: number; readonly besideMs: number }

/** Processor time of each system in each round: in turns, since a figure from another minute is not a baseline. */
const inTurns = async (systems: readonly System[], each: Case, rounds: number): Promise<Map<string, Taken[]>> => {
  const taken = new Map<string, Taken[]>(systems.map(({ name }) => [name, []]))
  for (let round = 0; round <= rounds; round += 1) {
    for (const system of systems) {
      const target = system[each.kind]
      const requests = round === 0 ? each.warmUp : each.requests
      const since = systemClock.now()
      const besideBefore = besideCpuOf(system)
      const before = cpuOf(system.pids)
      const answers = await closedLoop(target, each.body(target.model), each.clients, requests)
      // Before the next one has its turn: it has the same core.
      await system.booked(since, requests)
      const lost = each.kind === 'stream' ? lostOf(system, answers, CHUNKS) : undefined
      if (lost !== undefined) throw new Error(lost)
      if (round === 0) continue
      const beside = [...besideCpuOf(system)].reduce((sum, [pid, micros]) => sum + micros - (besideBefore.get(pid) ?? 0), 0)
      const micros = (cpuOf(system.pids) - before) / (requests * each.parts)
      taken.get(system.name)?.push({ micros, besideMs: beside / 1_000 })
    }
  }
  return taken
}

const costRows = async (systems: readonly System[], quick: boolean): Promise<Row[]> => {
  const rows: Row[] = []
  for (const each of casesOf(quick)) {
    // Portkey is beside us for whole answers only: it answers a stream of these engines with an error of its own.
    const beside = systems.filter(({ name }) => each.kind === 'whole' || name !== 'Portkey')
    const taken = await inTurns(beside, each, quick ? 3 : 7)
    const of = (name: string): number[] => (taken.get(name) ?? []).map(({ micros }) => micros)
    const others = beside.filter(({ name }) => name !== 'parvis').map(({ name }) => `${name} ${median(of(name)).toFixed(1)} µs`)
    // Round by round: what disturbed one of the two has mostly disturbed the other, too.
    const against = (name: string): number => median(of('parvis').map((micros, round) => micros / (of(name)[round] ?? Number.NaN)))
    rows.push({ what: `CPU of ${each.what}`, value: median(of('parvis')), unit: 'µs', beside: others.join(', ') })
    const times = beside.filter(({ name }) => name !== 'parvis' && name !== 'nginx')
    rows.push({
      what: '  against nginx',
      value: against('nginx'),
      unit: '×',
      beside: [
        `goal ≤ ${each.goal} ×${each.budget === undefined ? '' : `, budget ≤ ${each.budget} ×`}`,
        ...times.map(({ name }) => `against ${name} ${against(name).toFixed(2)} ×`),
      ].join('; '),
      cliff: { above: each.cliff, why: 'bytes pass through; what we add to a request must stay small beside them' },
    })
    if (each.kind === 'whole') {
      rows.push({
        what: '  of the embedded database, in a round',
        value: median((taken.get('parvis') ?? []).map(({ besideMs }) => besideMs)),
        unit: 'ms',
        beside: `${each.requests} requests; of the processes that lived on, on the other core`,
      })
    }
  }
  return rows
}

const BODY_BYTES = 1_000
/** Of a stream only its first byte is looked at here: short ones, so that there are more of them. */
const SHORT_CHUNKS = 10
const FIRST_TOKENS = 10
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

const latencyRows = async (onDisk: System, quick: boolean): Promise<Row[]> => {
  const engines = await startEngines(SHORT_CHUNKS, CHUNK_EVERY_MS)
  const inMemory = await startParvis(engines, { directory: MEMORY_DIR })
  const scratch = mkdtempSync(join(tmpdir(), 'parvis-bench-sync-'))
  const perSecond = quick ? 250 : 1_000
  const seconds = quick ? 1 : 5
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
    await closedLoop(inMemory.whole, bodyOf(inMemory.whole.model, BODY_BYTES, false), CLIENTS, SETTLED_AFTER)
    for (let round = 0; round <= (quick ? 2 : 7); round += 1) {
      for (const [system, rounds] of whole) {
        const answers = await openLoop(system.whole, bodyOf(system.whole.model, BODY_BYTES, false), perSecond, seconds)
        if (round > 0) rounds.push(answers)
      }
      for (const [system, rounds] of first) {
        const answers = await closedLoop(system.stream, stream(system.stream), 1, FIRST_TOKENS)
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
        beside: `goal and budget ≤ 0.5 ms; the engine called directly; ${load}`,
        cliff: { above: 10, why: 'nobody waits for what we decide from memory' },
      },
      { what: '  the same, p99', value: added(whole, inMemory, none, 99, 'lastByteMs'), unit: 'ms', beside: load },
      {
        what: 'the wait for the journal, p50',
        value: added(whole, onDisk, inMemory, 50, 'lastByteMs'),
        unit: 'ms',
        beside: `goal and budget ≤ two syncs and 0.5 ms; one sync of this disk takes ${syncedMs} ms, ${longerMs} ms where a file becomes longer; beside the same server in memory`,
      },
      {
        what: 'added to the first token, p50',
        value: added(first, inMemory, none, 50, 'firstByteMs'),
        unit: 'ms',
        beside: 'goal and budget ≤ 1 ms; one stream at a time, the engine called directly',
        cliff: { above: 20, why: 'a token goes on as it comes' },
      },
    ]
  } finally {
    await inMemory.stop()
    await engines.stop()
    rmSync(scratch, { recursive: true, force: true })
  }
}

/** What the gateway adds and costs: beside nginx, the bare proxy and, without `quick`, a gateway that many run. */
export const benchPath = async (quick: boolean): Promise<Row[]> => {
  const engines = await startEngines(CHUNKS, CHUNK_EVERY_MS)
  const running: System[] = []
  try {
    running.push(await startNginx(engines), await startBare(engines))
    if (!quick) running.push(await startPortkey(engines))
    const parvis = await startParvis(engines)
    running.push(parvis)
    const idleMb = residentMb(parvis.pid)
    const cost = await costRows(running, quick)
    const latency = await latencyRows(parvis, quick)
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
