import { startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { Client } from 'undici'
import { percentile, type Row } from '../measure.ts'
import { bodyOf } from './load.ts'
import { startParvis } from './systems.ts'

const HELD = 2 // tokens that come before the engine waits

/** From the moment a client leaves a stream to the moment the engine hears of it. */
export const benchLeave = async (quick: boolean): Promise<Row[]> => {
  const rounds = quick ? 50 : 400
  const engine = await startScriptedEngine({ tokens: ['a', 'b', 'c'], holdAfter: HELD }, { models: ['mock', 'stream'] })
  engine.play({})
  const parvis = await startParvis({ whole: engine, stream: engine })
  try {
    engine.play({ tokens: ['a', 'b', 'c'], holdAfter: HELD })
    const tookMs: number[] = []
    for (let round = 0; round < rounds; round += 1) {
      const client = new Client(`http://127.0.0.1:${parvis.port}`)
      const held = engine.count('held')
      const aborted = engine.count('aborted')
      const gone = client
        .request({
          method: 'POST',
          path: '/v1/chat/completions',
          headers: { authorization: `Bearer ${parvis.key}`, 'content-type': 'application/json' },
          body: bodyOf('mock', 1_000, true),
        })
        .then(({ body }) => body.text())
        .catch(() => undefined)
      await engine.until('held', held + 1)
      const leftAt = performance.now()
      await client.destroy()
      await engine.until('aborted', aborted + 1)
      tookMs.push(performance.now() - leftAt)
      await gone
    }
    const beside = `${rounds} streams, one after another; the promise is 100 ms`
    return [
      { what: 'a client leaves, the engine is told, p50', value: percentile(tookMs, 50), unit: 'ms', beside },
      {
        what: 'the same, p99',
        value: percentile(tookMs, 99),
        unit: 'ms',
        beside,
        cliff: { above: 1_000, why: 'an engine that works for nobody costs somebody' },
      },
    ]
  } finally {
    await parvis.stop()
    await engine.close()
  }
}
