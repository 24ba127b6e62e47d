import { fileURLToPath } from 'node:url'
import { median, percentile, type Row, startChild } from '../measure.ts'
import { bodyOf, closedLoop, type Load, type Target } from './load.ts'
import { startParvis } from './path.ts'

const CLIENTS = 32
const BODY_BYTES = 1_000

/** What limits cost on the whole path: two servers that differ in nothing else, in turns, in one run. */
export const benchLimits = async (quick: boolean): Promise<Row[]> => {
  const source = ['--import', 'tsx', '--conditions=@parvis/source']
  const engine = await startChild([...source, fileURLToPath(new URL('mock-engine.ts', import.meta.url)), '200', '5'])
  const limited = await startParvis(engine.port, engine.port)
  const free = await startParvis(engine.port, engine.port, { limits: false })
  try {
    for (const unit of ['tokens', 'money']) {
      const answer = await fetch(`http://127.0.0.1:${limited.port}/parvis/v1/budgets`, {
        method: 'PUT',
        headers: { authorization: `Bearer ${limited.key}`, 'content-type': 'application/json' },
        body: JSON.stringify({ unit, period: 'month', amount: unit === 'tokens' ? 9_000_000_000_000 : 9_000_000 }),
      })
      if (!answer.ok) throw new Error(`a budget was not set: ${await answer.text()}`)
    }
    const targetOf = ({ port, key, pid }: typeof limited): Target => ({
      origin: `http://127.0.0.1:${port}`,
      path: '/v1/chat/completions',
      model: 'mock',
      key,
      pid,
    })
    const systems = [targetOf(limited), targetOf(free)] as const
    const pairs: [Load, Load][] = []
    const rounds = quick ? 4 : 9
    for (let round = 0; round <= rounds; round += 1) {
      // Which comes first changes, since what a machine does beside has a rhythm of its own.
      const order = round % 2 === 0 ? [0, 1] : [1, 0]
      const loads: Load[] = []
      for (const which of order) {
        const target = systems[which] as Target
        loads[which] = await closedLoop(target, bodyOf('mock', BODY_BYTES, false), CLIENTS, quick ? 1_500 : 6_000)
      }
      // The first round warms up.
      if (round > 0) pairs.push(loads as [Load, Load])
    }
    const cpu = (which: 0 | 1): number => Math.min(...pairs.map((pair) => pair[which].cpuPerRequestMicros))
    const latency = (which: 0 | 1): number => median(pairs.map((pair) => percentile(pair[which].latencyMs, 50)))
    return [
      {
        what: 'CPU per request, with limits',
        value: cpu(0),
        unit: 'µs',
        beside: `without any ${cpu(1).toFixed(0)} µs; best of ${pairs.length} pairs, three limits and two budgets`,
      },
      {
        what: 'with limits against without',
        value: median(pairs.map(([on, off]) => on.cpuPerRequestMicros / off.cpuPerRequestMicros)),
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
    await engine.stop()
  }
}
