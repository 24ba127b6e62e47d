import { systemClock } from '@parvis/server/kit/clock'
import { median, percentile, type Row } from '../measure.ts'
import { bodyOf, closedLoop } from './load.ts'
import { cpuOf, startEngines, startParvis } from './systems.ts'

const CLIENTS = 32
const BODY_BYTES = 1_000

type Taken = { readonly cpuMicros: number; readonly p50Ms: number }

/** What limits cost on the whole path: two servers that differ in nothing else, in turns, in one run. */
export const benchLimits = async (quick: boolean): Promise<Row[]> => {
  const engines = await startEngines(200, 5)
  const limited = await startParvis(engines)
  const free = await startParvis(engines, { limits: false })
  try {
    for (const unit of ['tokens', 'money']) {
      const answer = await fetch(`http://127.0.0.1:${limited.port}/parvis/v1/budgets`, {
        method: 'PUT',
        headers: { authorization: `Bearer ${limited.key}`, 'content-type': 'application/json' },
        body: JSON.stringify({ unit, period: 'month', amount: unit === 'tokens' ? 9_000_000_000_000 : 9_000_000 }),
      })
      if (!answer.ok) throw new Error(`a budget was not set: ${await answer.text()}`)
    }
    const systems = [limited, free] as const
    const requests = quick ? 3_000 : 6_000
    const pairs: [Taken, Taken][] = []
    const rounds = quick ? 3 : 9
    for (let round = 0; round <= rounds; round += 1) {
      // Which comes first changes, since what a machine does beside has a rhythm of its own.
      const taken: Taken[] = []
      for (const which of round % 2 === 0 ? ([0, 1] as const) : ([1, 0] as const)) {
        const { whole, pids, booked } = systems[which]
        const since = systemClock.now()
        const before = cpuOf(pids)
        const answers = await closedLoop(whole, bodyOf('mock', BODY_BYTES, false), CLIENTS, requests)
        await booked(since, requests)
        taken[which] = {
          cpuMicros: (cpuOf(pids) - before) / requests,
          p50Ms: percentile(
            answers.map(({ lastByteMs }) => lastByteMs),
            50,
          ),
        }
      }
      // The first round warms up.
      if (round > 0) pairs.push(taken as [Taken, Taken])
    }
    const cpu = (which: 0 | 1): number => Math.min(...pairs.map((pair) => pair[which].cpuMicros))
    const latency = (which: 0 | 1): number => median(pairs.map((pair) => pair[which].p50Ms))
    return [
      {
        what: 'CPU per request, with limits',
        value: cpu(0),
        unit: 'µs',
        beside: `without any ${cpu(1).toFixed(0)} µs; best of ${pairs.length} pairs, three limits and two budgets`,
      },
      {
        what: 'with limits against without',
        value: median(pairs.map(([on, off]) => on.cpuMicros / off.cpuMicros)),
        unit: '×',
        beside: 'median of the pairs',
        cliff: { above: 3, why: 'limits are decided from memory' },
      },
      {
        what: 'p50 of a request, with limits',
        value: latency(0),
        unit: 'ms',
        beside: `without any ${latency(1).toFixed(2)} ms; ${CLIENTS} clients in a closed loop`,
      },
    ]
  } finally {
    await limited.stop()
    await free.stop()
    await engines.stop()
  }
}
