import { aModel } from '@parvis/testkit/data-plane'
import { expect, test } from 'vitest'
import type { Instant } from '../kit/clock.ts'
import { speak } from '../kit/refusal.ts'
import { resolveWith } from './resolve.ts'
import { withoutSpeech } from './without-speech.ts'

const weights = { path: '/models/x', bytes: 1, sha256: '0'.repeat(64) }
const models = [
  aModel({ weights }),
  aModel({ name: 'tiny-whisper', type: 'audio', maxOutputTokens: null, weights }),
  aModel({ name: 'whisper-elsewhere', type: 'audio', maxOutputTokens: null }),
]
const catalog = withoutSpeech({ list: () => models, resolve: resolveWith((name) => models.find((model) => model.name === name)) })
const resolve = (name: string) => catalog.resolve(name, 0 as Instant)

test('where speech is not installed, only the models that need it are not listed', () => {
  expect(catalog.list().map(({ name }) => name)).toEqual(['tiny-chat', 'whisper-elsewhere'])
})
test('who asks for one of them is told what is missing, and all others are found as ever', () => {
  const refused = resolve('tiny-whisper')
  if (refused.ok) throw new Error('it was resolved')
  expect(speak(refused.refusal)).toMatchObject({
    status: 503,
    body: { error: { message: expect.stringContaining('speech is not installed') } },
  })
  expect(resolve('whisper-elsewhere')).toMatchObject({ ok: true })
  expect(resolve('tiny-chat')).toMatchObject({ ok: true })
  expect(resolve('nobody')).toMatchObject({ ok: false, refusal: { code: 'model_unknown' } })
})
