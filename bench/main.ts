import { benchEngine } from './engine/engine.ts'
import { machine, type Row, unpin } from './measure.ts'
import { benchAdmit } from './micro/admit/admit.ts'
import { benchGuess } from './micro/guess/guess.ts'
import { benchLook } from './micro/look/look.ts'
import { benchGateways } from './path/gateways.ts'
import { benchLeave } from './path/leave.ts'
import { benchLimits } from './path/limits.ts'
import { benchPath } from './path/path.ts'
import { benchProfile } from './path/profile.ts'
import { benchRevoke } from './path/revoke.ts'
import { benchStreams } from './path/streams.ts'
import { benchSoak } from './soak/soak.ts'
import { benchStart } from './start/start.ts'
import { benchWork } from './work/work.ts'

const HELP = `npm run bench -- [path] [streams] [start] [limits] [gateways] [profile] [leave] [revoke] [engine] [admit] [guess] [look] [work] [soak] [--quick] [--millions 10] [--streams 5000] [--minutes 60]

  path     what the gateway adds and costs, beside nginx, a bare proxy and another gateway, in turns
  streams  5,000 streams open at once
  start    from the command to ready, and what each process weighs
  limits   the same path with limits and budgets, and without, in pairs
  gateways what several gateways behind one port serve, each with a small part of a core, beside one; only when it is named
  profile  where the time of a JSON request goes and what it leaves behind, by V8's profilers, beside the bare proxy; only when it is named
  leave    how long it takes until an engine hears that its client has left
  revoke   how long a key is still taken after it was revoked
  engine   tokens per second of the embedded engine for 1, 4 and 8 parallel streams
  admit    what it costs to decide whether a request may begin
  guess    how near guessed tokens come to an engine's count, and what guessing costs
  look     what it costs to look at a request before an engine gets it: its fields, its messages, its images
  work     usage events a second through journal, shipping and totals, and what the end of a stream waits for
  soak     memory under a steady load, with a graph; only when it is named
  --quick  fewer rounds; what CI runs. Fails on the cliffs only
  --millions  events that \`work\` adds up; one million unless said otherwise
  --streams   how many \`streams\` opens; 5,000 unless said otherwise
  --minutes   how long \`soak\` runs; 60 unless said otherwise

Without a name all others run. The figures are this machine's: compare rows of one run, not runs.`

const given = process.argv.slice(2)
const millionsAt = given.indexOf('--millions')
const millions = millionsAt < 0 ? undefined : Number(given.splice(millionsAt, 2)[1])
const minutesAt = given.indexOf('--minutes')
const minutes = minutesAt < 0 ? 60 : Number(given.splice(minutesAt, 2)[1])

const streamsAt = given.indexOf('--streams')
const streams = streamsAt < 0 ? undefined : Number(given.splice(streamsAt, 2)[1])

const KINDS: Record<string, (quick: boolean) => Promise<Row[]>> = {
  path: benchPath,
  streams: (quick) => benchStreams(quick, streams),
  start: benchStart,
  limits: benchLimits,
  gateways: benchGateways,
  profile: benchProfile,
  leave: benchLeave,
  revoke: benchRevoke,
  engine: benchEngine,
  admit: benchAdmit,
  guess: benchGuess,
  look: benchLook,
  work: (quick) => benchWork(quick, millions),
  soak: () => benchSoak(minutes),
}

/** One takes an hour, one says something only of a machine that does nothing else, one is for whoever wants to know why. */
const ONLY_WHEN_NAMED: ReadonlySet<string> = new Set(['soak', 'gateways', 'profile'])

if (given.includes('--help')) {
  console.log(HELP)
  process.exit(0)
}
const quick = given.includes('--quick')
const names = given.filter((word) => word !== '--quick')
const unknown = names.filter((name) => !(name in KINDS))
if (unknown.length > 0) {
  console.error(`There is no benchmark ${unknown.join(', ')}.\n\n${HELP}`)
  process.exit(2)
}

console.log(`${machine()}\n`)
let cliffs = 0
let fine = 0
const beganMs = performance.now()
const secondsSince = (startedMs: number): string => `${((performance.now() - startedMs) / 1000).toFixed(0)} s`
for (const [name, bench] of Object.entries(KINDS)) {
  if (names.length > 0 ? !names.includes(name) : ONLY_WHEN_NAMED.has(name)) continue
  console.log(`── ${name}`)
  const startedMs = performance.now()
  const rows = await bench(quick)
  unpin()
  for (const row of rows) {
    // What is no number has not been measured, which is no better than too much.
    const fell = row.cliff !== undefined && !(row.value <= row.cliff.above)
    if (row.cliff !== undefined) {
      if (fell) cliffs += 1
      else fine += 1
    }
    console.log(`${row.what.padEnd(46)} ${row.value.toFixed(2).padStart(10)} ${row.unit.padEnd(6)} ${row.beside}`)
    if (fell) console.log(`  ✗ not within ${row.cliff?.above}: ${row.cliff?.why}`)
  }
  console.log(`   took ${secondsSince(startedMs)}\n`)
}
console.log(`${secondsSince(beganMs)} in all`)
console.log(`${fine} passed, ${cliffs} failed`)
process.exit(cliffs === 0 ? 0 : 1)
