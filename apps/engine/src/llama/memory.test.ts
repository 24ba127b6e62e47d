import { expect, test } from 'vitest'
import { fitMemory } from './memory.ts'

const need = async (sequences: number, contextTokens: number): Promise<number> => 1000 + sequences * contextTokens
const fit = (limit: number) => fitMemory(need, { sequences: 8, contextTokens: 4096 }, limit)

test('what fits is left as it was asked for', async () => {
  expect(await fit(40_000)).toEqual({ fits: true, sequences: 8, contextTokens: 4096, needBytes: 33_768 })
})

test('sequences are given up first, then context', async () => {
  expect(await fit(20_000)).toMatchObject({ sequences: 4, contextTokens: 4096 })
  expect(await fit(6000)).toMatchObject({ sequences: 1, contextTokens: 4096 })
  expect(await fit(3500)).toMatchObject({ sequences: 1, contextTokens: 2048 })
})

test('what does not fit even at its smallest is refused with what it would need', async () => {
  expect(await fit(1500)).toEqual({ fits: false, needBytes: 1512 })
})
