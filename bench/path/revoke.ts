import { startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { percentile, type Row } from '../measure.ts'
import { startParvis } from './systems.ts'

/** From the answer that says that a key is revoked to the first request that is refused with it, on the way that every gateway hears of it. */
export const benchRevoke = async (quick: boolean): Promise<Row[]> => {
  const rounds = quick ? 20 : 200
  const engine = await startScriptedEngine({}, { models: ['mock', 'stream'] })
  const parvis = await startParvis({ whole: engine, stream: engine })
  const origin = `http://127.0.0.1:${parvis.port}`
  const manage = async (method: string, path: string, body?: object): Promise<Response> => {
    const answer = await fetch(`${origin}/iam/v1alpha1${path}`, {
      method,
      headers: { 'x-auth-token': parvis.key },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
    if (!answer.ok) throw new Error(`${method} ${path} was answered ${answer.status}: ${await answer.text()}`)
    return answer
  }
  const statusWith = async (secretKey: string): Promise<number> => {
    const answer = await fetch(`${origin}/v1/models`, { headers: { authorization: `Bearer ${secretKey}` } })
    await answer.text()
    return answer.status
  }
  try {
    const { users } = (await (await manage('GET', '/users')).json()) as { users: { id: string }[] }
    const tookMs: number[] = []
    for (let round = 0; round < rounds; round += 1) {
      const created = (await (await manage('POST', '/api-keys', { user_id: users[0]?.id, description: 'bench' })).json()) as {
        access_key: string
        secret_key: string
      }
      while ((await statusWith(created.secret_key)) !== 200);
      await manage('DELETE', `/api-keys/${created.access_key}`)
      const revokedAt = performance.now()
      while ((await statusWith(created.secret_key)) === 200);
      tookMs.push(performance.now() - revokedAt)
    }
    const beside = `${rounds} keys, one after another; the promise is 1,000 ms`
    return [
      { what: 'a key is revoked and refused, p50', value: percentile(tookMs, 50), unit: 'ms', beside },
      {
        what: 'the same, p99',
        value: percentile(tookMs, 99),
        unit: 'ms',
        beside,
        cliff: { above: 10_000, why: 'somebody else has that key' },
      },
    ]
  } finally {
    await parvis.stop()
    await engine.close()
  }
}
