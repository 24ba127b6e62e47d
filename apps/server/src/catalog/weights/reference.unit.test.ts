import { describe, expect, test } from 'vitest'
import { chooseFiles, modelName, parseReference, partPath, readFileName } from './reference.ts'

const files = (...paths: string[]) => paths.map((path) => ({ path, bytes: 1, sha256: null }))
const nothing = { file: undefined, quantization: undefined }

describe('a reference', () => {
  const hub = (repo: string, file?: string, quantization?: string) => ({ kind: 'hub', repo, file, quantization })
  const cases: readonly [text: string, expected: unknown][] = [
    ['acme/Model-GGUF', hub('acme/Model-GGUF')],
    ['acme/Model-GGUF:model-Q4_0.gguf', hub('acme/Model-GGUF', 'model-Q4_0.gguf')],
    ['acme/Model-GGUF:Q8_0/model-00001-of-00002.gguf', hub('acme/Model-GGUF', 'Q8_0/model-00001-of-00002.gguf')],
    ['acme/Model-GGUF:q4_k_m', hub('acme/Model-GGUF', undefined, 'q4_k_m')],
    ['./model.gguf', { kind: 'file', path: './model.gguf' }],
    ['../a/model.gguf', { kind: 'file', path: '../a/model.gguf' }],
    ['/srv/a:b/model.gguf', { kind: 'file', path: '/srv/a:b/model.gguf' }],
    ['~/model.gguf', { kind: 'file', path: '~/model.gguf' }],
    ['model.gguf', { kind: 'file', path: 'model.gguf' }],
  ]
  for (const [text, expected] of cases) {
    test(`${text}`, () => {
      expect(parseReference(text)).toEqual(expected)
    })
  }
  for (const text of ['a/b/c', 'acme/..', 'acme/model:', 'acme/mo del', '-acme/x', 'https://hub/acme/model']) {
    test(`${text} is refused with the forms that are understood`, () => {
      expect(() => parseReference(text)).toThrow(/is not a model to pull\. Write org\/repo, /)
    })
  }
})

test('a file name is taken apart', () => {
  expect(readFileName('SmolLM2-135M-Instruct-Q8_0.gguf')).toEqual({
    stem: 'SmolLM2-135M-Instruct',
    quantization: 'Q8_0',
    part: 1,
    parts: 1,
  })
  expect(readFileName('qwen3-0.6b.q4_k_m.gguf')).toEqual({ stem: 'qwen3-0.6b', quantization: 'Q4_K_M', part: 1, parts: 1 })
  expect(readFileName('Model-UD-Q4_K_XL.gguf')).toMatchObject({ stem: 'Model', quantization: 'UD-Q4_K_XL' })
  expect(readFileName('Model-IQ4_NL.gguf')).toMatchObject({ stem: 'Model', quantization: 'IQ4_NL' })
  expect(readFileName('gpt-oss-20b-mxfp4.gguf')).toMatchObject({ stem: 'gpt-oss-20b', quantization: 'MXFP4' })
  expect(readFileName('M-Q4_0_4_4.gguf')).toMatchObject({ quantization: 'Q4_0_4_4' })
  expect(readFileName('big/Big-BF16-00002-of-00003.gguf')).toEqual({ stem: 'Big', quantization: 'BF16', part: 2, parts: 3 })
  expect(readFileName('Q8_0/model-00001-of-00002.gguf')).toEqual({ stem: 'model', quantization: 'Q8_0', part: 1, parts: 2 })
  expect(readFileName('plain.gguf')).toEqual({ stem: 'plain', quantization: null, part: 1, parts: 1 })
  expect(partPath('a/M-00003-of-00012.gguf', 1)).toBe('a/M-00001-of-00012.gguf')
})

test('a model is named in lower case, without vendor and quantisation', () => {
  expect(modelName('SmolLM2-135M-Instruct-Q4_K_M.gguf', 'bartowski/SmolLM2-135M-Instruct-GGUF')).toBe('smollm2-135m-instruct')
  expect(modelName('ggml-model-q4_0.gguf', 'acme/Some.Model-GGUF')).toBe('some.model')
  expect(modelName('Q8_0/model-00001-of-00002.gguf', 'acme/Big Model-gguf')).toBe('big-model')
  expect(modelName('/tmp/_Mein Modell (2).Q8_0.gguf', undefined)).toBe('mein-modell-2')
  expect(modelName('/tmp/model.gguf', undefined, 'Tiny Chat')).toBe('tiny-chat')
  expect(() => modelName('/tmp/model.gguf', undefined)).toThrow('choose one with --name')
})

describe('the file for a CPU', () => {
  const chosen = (...paths: string[]): string[] => chooseFiles('a/b', files(...paths), nothing).files.map((file) => file.path)

  test('is Q4_0 before Q4_K_M before Q8_0, and says so', () => {
    expect(chosen('m-Q8_0.gguf', 'm-Q4_K_M.gguf', 'm-Q4_0.gguf', 'm-F16.gguf')).toEqual(['m-Q4_0.gguf'])
    expect(chosen('m-Q8_0.gguf', 'm-Q4_K_M.gguf', 'm-F16.gguf')).toEqual(['m-Q4_K_M.gguf'])
    expect(chooseFiles('a/b', files('m-F16.gguf', 'm.q8_0.gguf'), nothing).because).toBe(
      'among 2 files Q8_0 runs best on a CPU; others can be asked for by name',
    )
  })

  test('is the only one, whatever it is; projectors and importance matrices are not counted', () => {
    expect(chosen('m-F16.gguf', 'mmproj-m-F16.gguf', 'm.imatrix.gguf', 'README.md')).toEqual(['m-F16.gguf'])
  })

  test('is not guessed among those nobody prefers, nor among two models', () => {
    expect(() => chosen('m-F16.gguf', 'm-IQ1_S.gguf')).toThrow(
      'a/b has several models; name one of these files:\n  a/b:m-F16.gguf\n  a/b:m-IQ1_S.gguf',
    )
    expect(() => chosen('m-Q4_0.gguf', 'n-Q4_0.gguf', 'm-F16.gguf')).toThrow(
      'name one of these files:\n  a/b:m-Q4_0.gguf\n  a/b:n-Q4_0.gguf',
    )
  })

  test('is all its parts, in order, or an error that names the missing one', () => {
    const parts = ['m-Q4_0-00002-of-00003.gguf', 'm-Q4_0-00003-of-00003.gguf', 'm-Q4_0-00001-of-00003.gguf']
    expect(chosen(...parts, 'm-F16.gguf')).toEqual(parts.toSorted())
    expect(() => chosen(...parts.slice(1))).toThrow('a/b is not complete: m-Q4_0-00002-of-00003.gguf is missing.')
    expect(() => chosen('m-00001-of-99999.gguf')).toThrow('claims to be one of 99999 parts')
  })

  test('can be asked for by quantization, or refused with what there is', () => {
    const repo = files('m-Q4_0.gguf', 'm-Q6_K.gguf')
    expect(chooseFiles('a/b', repo, { file: undefined, quantization: 'q6_k' })).toMatchObject({
      files: [{ path: 'm-Q6_K.gguf' }],
      because: undefined,
    })
    expect(() => chooseFiles('a/b', repo, { file: undefined, quantization: 'Q5_0' })).toThrow(
      'a/b has no Q5_0. It has:\n  a/b:m-Q4_0.gguf\n  a/b:m-Q6_K.gguf',
    )
  })
})
