import { aModel, startDataPlane } from '@parvis/testkit/data-plane'
import { ModelList } from '@parvis/wire/openai/models'
import { expect, test } from 'vitest'

const NOWHERE = 'http://127.0.0.1:9' // no engine takes part

test('the models are listed with and without the project, and those at their end are not', async () => {
  const models = [aModel(), aModel({ name: 'mistral/small:fp8', type: 'embedding' }), aModel({ name: 'old', status: 'eol' })]
  await using plane = await startDataPlane({ engine: NOWHERE, models })
  for (const path of ['/v1/models', '/v1//models', `/${plane.projectId}/v1/models`, `/${plane.projectId}/v1//models`]) {
    const answer = await plane.ask(path)
    expect(answer.status).toBe(200)
    expect(answer.headers.get('x-request-id')).toMatch(/^[0-9a-f-]{36}$/)
    expect(ModelList.parse(await answer.json())).toEqual({
      object: 'list',
      data: [
        { id: 'tiny-chat', object: 'model', created: 1_750_000_000, owned_by: 'parvis' },
        { id: 'mistral/small:fp8', object: 'model', created: 1_750_000_000, owned_by: 'parvis' },
      ],
    })
  }
})

test('one model is read by its id, with a slash in it too; an unknown one is 404', async () => {
  await using plane = await startDataPlane({
    engine: NOWHERE,
    models: [aModel({ name: 'mistral/small:fp8' }), aModel({ name: 'old', status: 'eol' })],
  })
  for (const name of ['mistral/small:fp8', encodeURIComponent('mistral/small:fp8')]) {
    expect(await (await plane.ask(`/v1/models/${name}`)).json()).toMatchObject({ id: 'mistral/small:fp8', object: 'model' })
  }
  for (const name of ['other', 'old', 'x'.repeat(2000)]) {
    const answer = await plane.ask(`/v1/models/${name}`)
    expect(answer.status).toBe(404)
    expect(await answer.json()).toMatchObject({ error: { type: 'NotFoundError', code: 404, param: 'model' } })
  }
})

test('HEAD asks for the same without the body', async () => {
  await using plane = await startDataPlane({ engine: NOWHERE })
  const answer = await plane.ask('/v1/models', undefined, { method: 'HEAD' })
  expect([answer.status, await answer.text()]).toEqual([200, ''])
  expect(Number(answer.headers.get('content-length'))).toBeGreaterThan(10)
})
