import { expect, test } from 'vitest'
import type { ModelId } from '../kit/ids.ts'
import { planModels, type Wanted } from './engines.ts'

const wanted = (changes: Partial<Wanted> = {}): Wanted => ({ models: [], types: new Map(), contexts: new Map(), force: false, ...changes })
const offers = (...ids: string[]) => ids.map((id) => ({ id, contextTokens: undefined }))

test('what no endpoint serves is left out, and told', () => {
  const { planned, leftOut } = planModels(offers('gpt-4o', 'whisper-1', 'tts-1', 'text-embedding-3-small'), wanted(), [])
  expect(planned.map(({ name, type }) => `${name} ${type}`)).toEqual(['gpt-4o chat', 'whisper-1 audio', 'text-embedding-3-small embedding'])
  expect(leftOut).toEqual(['tts-1'])
})

test('what hears is known by the names such models have', () => {
  const ids = [
    'nvidia/parakeet-tdt-0.6b-v2',
    'nvidia/canary-1b-flash',
    'gpt-4o-mini-transcribe',
    'Qwen/Qwen3-ASR-1.7B',
    'iic/SenseVoiceSmall',
    'UsefulSensors/moonshine-base',
    'facebook/wav2vec2-large-960h',
  ]
  const { planned, leftOut } = planModels(offers(...ids, 'hexgrad/Kokoro-82M', 'piper-en'), wanted(), [])
  expect(planned.map(({ remote, type }) => `${remote} ${type}`)).toEqual(ids.map((id) => `${id} audio`))
  expect(leftOut).toEqual(['hexgrad/Kokoro-82M', 'piper-en'])
})

test('what only the operator can decide is asked back with the flag that decides it', () => {
  expect(() => planModels(offers('a/m', 'b/m'), wanted(), [])).toThrow(/would be called m here.*--model/)
  expect(() => planModels(offers(...Array.from({ length: 33 }, (_, at) => `m${at}`)), wanted(), [])).toThrow(/has 33 models.*--model/)
  expect(() => planModels([], wanted(), [])).toThrow(/no model that can be served/)
  const voice = wanted({ models: [{ name: 'voice', remote: 'tts-1' }] })
  expect(() => planModels(offers('tts-1'), voice, [])).toThrow(/--type voice=chat\|/)
  const said = { ...voice, types: new Map([['voice', 'audio' as const]]) }
  expect(planModels(offers('tts-1'), said, []).planned).toMatchObject([{ name: 'voice', type: 'audio' }])
  const mine = [{ id: '0' as ModelId, name: 'm', type: 'embedding' as const }]
  expect(() => planModels(offers('m'), wanted({ types: new Map([['m', 'chat']]) }), mine)).toThrow(/in the catalogue as embedding/)
})

test('names of engines become names of the catalogue', () => {
  const names = planModels(offers('llama3.2:1b', 'Qwen/Qwen3-0.6B-GGUF', '/models/My Model.gguf'), wanted(), []).planned.map(
    ({ name }) => name,
  )
  expect(names).toEqual(['llama3.2-1b', 'qwen3-0.6b-gguf', 'my-model.gguf'])
})
