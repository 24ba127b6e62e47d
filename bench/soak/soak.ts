import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { median, OTHER_CORE, pin, type Row, residentMb } from '../measure.ts'
import { bodyOf, openLoop } from '../path/load.ts'
import { startEngines, startParvis } from '../path/systems.ts'

const WHOLE_PER_SECOND = 450
const STREAMS_PER_SECOND = 50
const STREAM_CHUNKS = 20
const CHUNK_EVERY_MS = 10
/** One sample of memory for each. */
const STEP_SECONDS = 10
/** What comes first is caches that fill. */
const SETTLED_FROM = 0.25

type Sample = { readonly minute: number; readonly mb: number }

/** Memory of the server under a steady load; its graph is written to the directory in which the benchmark was started. */
export const benchSoak = async (minutes: number): Promise<Row[]> => {
  pin([process.pid], OTHER_CORE)
  const engines = await startEngines(STREAM_CHUNKS, CHUNK_EVERY_MS)
  const parvis = await startParvis(engines)
  const samples: Sample[] = []
  let answered = 0
  const startedAt = performance.now()
  const minute = (): number => (performance.now() - startedAt) / 60_000
  const file = join(process.cwd(), 'soak.svg')
  try {
    const whole = bodyOf('mock', 1_000, false)
    const streamed = bodyOf('stream', 1_000, true)
    while (minute() < minutes) {
      const answers = await Promise.all([
        openLoop(parvis.whole, whole, WHOLE_PER_SECOND, STEP_SECONDS),
        openLoop(parvis.stream, streamed, STREAMS_PER_SECOND, STEP_SECONDS),
      ])
      answered += answers.flat().length
      samples.push({ minute: minute(), mb: residentMb(parvis.pid) })
      writeFileSync(file, toSvg(samples, minutes))
    }
    const settled = samples.filter(({ minute: at }) => at >= minutes * SETTLED_FROM)
    const { slope, noise } = trend(settled)
    const beside = `over the last ${(minutes * (1 - SETTLED_FROM)).toFixed(0)} of ${minutes} minutes, ${answered} answers; graph in ${file}`
    const spread = `one sample lies ${noise.toFixed(1)} MiB from the line`
    return [
      { what: 'answers a second, held', value: answered / (minute() * 60), unit: '/s', beside: 'nine whole ones for one stream' },
      { what: 'memory of the server, median', value: median(settled.map(({ mb }) => mb)), unit: 'MiB', beside },
      { what: 'memory grows, by the line through it', value: slope * 60, unit: 'MiB/h', beside: spread },
    ]
  } finally {
    await parvis.stop()
    await engines.stop()
  }
}

/** The straight line through the samples, in MiB a minute, and how far from it one lies (standard deviation). */
const trend = (samples: readonly Sample[]): { slope: number; noise: number } => {
  const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length
  const x = mean(samples.map(({ minute }) => minute))
  const y = mean(samples.map(({ mb }) => mb))
  const slope =
    samples.reduce((sum, { minute, mb }) => sum + (minute - x) * (mb - y), 0) /
    samples.reduce((sum, { minute }) => sum + (minute - x) ** 2, 0)
  return { slope, noise: Math.sqrt(mean(samples.map(({ minute, mb }) => (mb - y - slope * (minute - x)) ** 2))) }
}

const WIDTH = 800
const HEIGHT = 300
const MARGIN = 50

const toSvg = (samples: readonly Sample[], minutes: number): string => {
  const most = Math.max(...samples.map(({ mb }) => mb)) * 1.2
  const x = (minute: number): number => MARGIN + (minute / minutes) * (WIDTH - 2 * MARGIN)
  const y = (mb: number): number => HEIGHT - MARGIN - (mb / most) * (HEIGHT - 2 * MARGIN)
  const line = samples.map(({ minute, mb }) => `${x(minute).toFixed(1)},${y(mb).toFixed(1)}`).join(' ')
  const marks = Array.from({ length: 5 }, (_, index) => (most / 4) * index)
  const text = (left: number, top: number, said: string, anchor = 'end'): string =>
    `<text x="${left.toFixed(0)}" y="${top.toFixed(0)}" text-anchor="${anchor}">${said}</text>`
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="${WIDTH}" height="${HEIGHT}" fill="#fff"/>
${text(MARGIN, 20, `Resident memory in MiB, ${WHOLE_PER_SECOND + STREAMS_PER_SECOND} requests a second`, 'start')}
${marks.map((mb) => `<path d="M${MARGIN} ${y(mb).toFixed(1)}H${WIDTH - MARGIN}" stroke="#ddd"/>${text(MARGIN - 6, y(mb) + 4, mb.toFixed(0))}`).join('\n')}
${[0, 0.25, 0.5, 0.75, 1].map((part) => text(x(part * minutes), HEIGHT - MARGIN + 18, `${(part * minutes).toFixed(0)} min`, 'middle')).join('\n')}
<polyline points="${line}" fill="none" stroke="#0a58ca" stroke-width="1.5"/>
</svg>
`
}
