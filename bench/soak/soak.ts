import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as after } from 'node:timers/promises'
import { median, OTHER_CORE, pin, type Row, residentMb } from '../measure.ts'
import { bodyOf, openLoop } from '../path/load.ts'
import { startEngines, startParvis } from '../path/systems.ts'
import { sharedOutMb } from '../start/start.ts'

const WHOLE_PER_SECOND = 450
const STREAMS_PER_SECOND = 50
const STREAM_CHUNKS = 20
const CHUNK_EVERY_MS = 10
/** So long a connection is used; the server would close one that has waited for longer than it keeps any. */
const STEP_SECONDS = 10
const SAMPLE_EVERY_MS = 2_000
/** What comes first is caches that fill. */
const SETTLED_FROM = 0.25
/** The line goes through means of so many pieces of time, in an hour of a minute and a bit: within a minute one sample is like the one before. */
const PIECES = 40
const GRAPH_PIECES = 360
/** In less, what still fills looks like what grows. */
const VERDICT_FROM_MINUTES = 20
const GROWTH_CLIFF = { above: 4, why: 'memory grows by more than its noise explains (three standard errors)' }

type Sample = { readonly minute: number; readonly serverMb: number; readonly databaseMb: number }
type Figure = 'serverMb' | 'databaseMb'

const databaseMb = (pids: readonly number[]): number =>
  pids.reduce((sum, pid) => {
    try {
      return sum + sharedOutMb(pid)
    } catch {
      return sum // it has ended since we read its number
    }
  }, 0)

/** Memory of the server, and of its database, under a steady load; the graph is written to the directory in which the benchmark was started. */
export const benchSoak = async (minutes: number): Promise<Row[]> => {
  pin([process.pid], OTHER_CORE)
  const engines = await startEngines(STREAM_CHUNKS, CHUNK_EVERY_MS)
  const parvis = await startParvis(engines)
  const samples: Sample[] = []
  let answered = 0
  const startedAtMs = performance.now()
  const minute = (): number => (performance.now() - startedAtMs) / 60_000
  const file = join(process.cwd(), 'soak.svg')
  const sampler = setInterval(() => {
    samples.push({ minute: minute(), serverMb: residentMb(parvis.pid), databaseMb: databaseMb(parvis.beside()) })
  }, SAMPLE_EVERY_MS)
  try {
    const whole = bodyOf('mock', 1_000, false)
    const streamed = bodyOf('stream', 1_000, true)
    const step = async (): Promise<void> => {
      const answers = await Promise.all([
        openLoop(parvis.whole, whole, WHOLE_PER_SECOND, STEP_SECONDS),
        openLoop(parvis.stream, streamed, STREAMS_PER_SECOND, STEP_SECONDS),
      ])
      for (const each of answers) answered += each.length
    }
    // A step begins when the one before has sent all it had to send, whatever has not come back: there is no pause in the load.
    let before: Promise<void> = Promise.resolve()
    for (let steps = 0; steps * STEP_SECONDS < minutes * 60; steps += 1) {
      await after(Math.max(0, startedAtMs + steps * STEP_SECONDS * 1000 - performance.now()))
      const running = step()
      running.catch(() => undefined) // it is waited for, but later
      await before
      before = running
      if (samples.length > 0) writeFileSync(file, toSvg(samples, minutes))
    }
    await before
    const took = minute()
    writeFileSync(file, toSvg(samples, minutes))
    const settled = samples.filter((sample) => sample.minute >= minutes * SETTLED_FROM)
    const span = `over the last ${(minutes * (1 - SETTLED_FROM)).toFixed(1)} of ${minutes} minutes`
    const server = trend(settled, 'serverMb')
    const database = trend(settled, 'databaseMb')
    return [
      {
        what: 'answers a second',
        value: answered / (took * 60),
        unit: '/s',
        beside: `${answered} in ${took.toFixed(1)} minutes; ${WHOLE_PER_SECOND} whole ones and ${STREAMS_PER_SECOND} streams are asked for in a second`,
      },
      {
        what: 'memory of the server, median',
        value: median(settled.map(({ serverMb }) => serverMb)),
        unit: 'MiB',
        beside: `resident, ${span}, ${settled.length} samples; graph in ${file}`,
      },
      {
        what: '  grows, by the line through it',
        value: server.perHour,
        unit: 'MiB/h',
        beside: `± ${server.error.toFixed(2)} (standard error)`,
      },
      {
        what: '  grows, at the least',
        value: server.perHour - 3 * server.error,
        unit: 'MiB/h',
        beside:
          minutes < VERDICT_FROM_MINUTES ? `no verdict: that takes ${VERDICT_FROM_MINUTES} minutes` : 'the line less three standard errors',
        ...(minutes < VERDICT_FROM_MINUTES ? {} : { cliff: GROWTH_CLIFF }),
      },
      {
        what: 'memory of the database, median',
        value: median(settled.map((sample) => sample.databaseMb)),
        unit: 'MiB',
        beside: `all its processes, what they share divided between them; ${database.perHour.toFixed(1)} ± ${database.error.toFixed(1)} MiB/h, while its buffers fill`,
      },
    ]
  } finally {
    clearInterval(sampler)
    await parvis.stop()
    await engines.stop()
  }
}

const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length

/** The means of so many pieces, one after the other; fewer where there are not as many samples. */
const piecesOf = (samples: readonly Sample[], figure: Figure, pieces: number): { x: number; y: number }[] => {
  const size = Math.max(1, Math.floor(samples.length / pieces))
  return Array.from({ length: Math.floor(samples.length / size) }, (_, index) => {
    const piece = samples.slice(index * size, (index + 1) * size)
    return { x: mean(piece.map(({ minute }) => minute / 60)), y: mean(piece.map((sample) => sample[figure])) }
  })
}

/**
 * The straight line through the samples, in MiB an hour, and the standard error of its slope, made larger by how much a piece is like the one before:
 * what rises and falls slowly says less than its number of samples promises.
 */
const trend = (samples: readonly Sample[], figure: Figure): { perHour: number; error: number } => {
  const points = piecesOf(samples, figure, PIECES)
  const [middleX, middleY] = [mean(points.map(({ x }) => x)), mean(points.map(({ y }) => y))]
  const spreadX = points.reduce((sum, { x }) => sum + (x - middleX) ** 2, 0)
  const perHour = points.reduce((sum, { x, y }) => sum + (x - middleX) * (y - middleY), 0) / spreadX
  const rests = points.map(({ x, y }) => y - middleY - perHour * (x - middleX))
  const squares = rests.reduce((sum, rest) => sum + rest ** 2, 0)
  const alike = Math.max(0, rests.slice(1).reduce((sum, rest, index) => sum + rest * (rests[index] ?? 0), 0) / squares)
  return { perHour, error: Math.sqrt((squares / (points.length - 2) / spreadX) * ((1 + alike) / (1 - alike))) }
}

const WIDTH = 800
const HEIGHT = 300
const MARGIN = 50
const LINES: readonly { readonly figure: Figure; readonly name: string; readonly colour: string }[] = [
  { figure: 'serverMb', name: 'server', colour: '#0a58ca' },
  { figure: 'databaseMb', name: 'database, all its processes', colour: '#b35900' },
]

const toSvg = (samples: readonly Sample[], minutes: number): string => {
  const most = Math.max(...samples.flatMap((sample) => [sample.serverMb, sample.databaseMb])) * 1.2
  const x = (minute: number): number => MARGIN + (minute / minutes) * (WIDTH - 2 * MARGIN)
  const y = (mb: number): number => HEIGHT - MARGIN - (mb / most) * (HEIGHT - 2 * MARGIN)
  const marks = Array.from({ length: 5 }, (_, index) => (most / 4) * index)
  const text = (left: number, top: number, said: string, anchor = 'end', colour = '#000'): string =>
    `<text x="${left.toFixed(0)}" y="${top.toFixed(0)}" text-anchor="${anchor}" fill="${colour}">${said}</text>`
  const lines = LINES.map(({ figure, name, colour }, index) => {
    const points = piecesOf(samples, figure, GRAPH_PIECES).map((point) => `${x(point.x * 60).toFixed(1)},${y(point.y).toFixed(1)}`)
    return `${text(MARGIN + 8 + index * 60, MARGIN - 10, name, 'start', colour)}
<polyline points="${points.join(' ')}" fill="none" stroke="${colour}" stroke-width="1.5"/>`
  })
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="${WIDTH}" height="${HEIGHT}" fill="#fff"/>
${text(MARGIN, 20, `Memory in MiB, ${WHOLE_PER_SECOND + STREAMS_PER_SECOND} requests a second`, 'start')}
${marks.map((mb) => `<path d="M${MARGIN} ${y(mb).toFixed(1)}H${WIDTH - MARGIN}" stroke="#ddd"/>${text(MARGIN - 6, y(mb) + 4, mb.toFixed(0))}`).join('\n')}
${[0, 0.25, 0.5, 0.75, 1].map((part) => text(x(part * minutes), HEIGHT - MARGIN + 18, `${(part * minutes).toFixed(0)} min`, 'middle')).join('\n')}
${lines.join('\n')}
</svg>
`
}
