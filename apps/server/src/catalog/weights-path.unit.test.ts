import { expect, test } from 'vitest'
import { isStoredWeights, resolveWeights, storeWeights } from './weights-path.ts'

const dirs = { builtin: '/repo/models', pulled: '/data/models' }

test('what lies in our folders is stored relative to them, so that they may move', () => {
  expect(storeWeights(dirs, '/repo/models/tiny-chat/x.gguf')).toBe('builtin:tiny-chat/x.gguf')
  expect(storeWeights(dirs, '/data/models/org/repo/x.gguf')).toBe('pulled:org/repo/x.gguf')
  expect(resolveWeights({ ...dirs, builtin: '/moved' }, 'builtin:tiny-chat/x.gguf')).toBe('/moved/tiny-chat/x.gguf')
  expect(resolveWeights(dirs, 'pulled:org/repo/x.gguf')).toBe('/data/models/org/repo/x.gguf')
})

test('what lies elsewhere is stored as it is', () => {
  for (const path of ['/srv/x.gguf', '/data/models-2/x.gguf', '/data/models', '/data/x.gguf']) {
    expect(storeWeights(dirs, path)).toBe(path)
    expect(resolveWeights(dirs, path)).toBe(path)
  }
})

test('a stored path cannot leave its folder', () => {
  for (const stored of [
    'builtin:../x',
    'pulled:a/../../x',
    'pulled:/etc/passwd',
    'pulled:',
    'pulled:a//b',
    'pulled:a\\..\\b',
    'x.gguf',
    './x',
    '',
    'other:x',
    '/a\0b',
  ]) {
    expect(isStoredWeights(stored)).toBe(false)
    expect(() => resolveWeights(dirs, stored)).toThrow('is neither builtin:…, pulled:… nor absolute')
  }
})
