import type { BatchItem, EvaluationPriority } from 'node-llama-cpp'
import { describe, expect, test } from 'vitest'
import { openBatching } from './batching.ts'

const item = (priority: number, tokens: number): BatchItem => ({
  tokens: Array(tokens).fill(0),
  logits: [],
  evaluationPriority: priority as EvaluationPriority,
})
const amounts = (batch: readonly { item: BatchItem; processAmount: number }[]) =>
  batch.map((one) => [one.item.evaluationPriority, one.processAmount])

describe('a batch', () => {
  test('waits for the sequences that are missing, but not for ever', () => {
    const batching = openBatching()
    batching.enter()
    batching.enter()
    const items = [item(1, 1)]
    let waits = 0
    while (batching.strategy({ items, size: 512 }).length === 0) waits += 1
    expect(waits).toBe(40)
    expect(batching.strategy({ items: [item(2, 1), item(1, 1)], size: 512 })).toHaveLength(2)
    batching.leave()
    expect(batching.strategy({ items, size: 512 })).toHaveLength(1)
  })

  test('takes the sequences in the order of their slots', () => {
    const { strategy } = openBatching()
    expect(amounts(strategy({ items: [item(3, 1), item(1, 1), item(2, 1)], size: 512 }))).toEqual([
      [1, 1],
      [2, 1],
      [3, 1],
    ])
  })

  test('gives every generating sequence its token, and prompts share the rest', () => {
    const { strategy } = openBatching()
    expect(amounts(strategy({ items: [item(1, 300), item(2, 1), item(3, 300)], size: 101 }))).toEqual([
      [1, 50],
      [2, 1],
      [3, 50],
    ])
    expect(amounts(strategy({ items: [item(1, 10), item(2, 300)], size: 100 }))).toEqual([
      [1, 10],
      [2, 90],
    ])
    expect(amounts(strategy({ items: [item(1, 1), item(2, 300)], size: 1 }))).toEqual([[1, 1]])
  })
})

test('while a state is changed everybody is asked to pause, and goes on when the last change is done', async () => {
  const batching = openBatching()
  expect(batching.pause()).toBeUndefined()
  const ends: (() => void)[] = []
  const changes = [0, 1].map(() => batching.whileStill(() => new Promise<void>((resolve) => ends.push(resolve))))
  let resumed = false
  const pause = batching.pause()?.then(() => {
    resumed = true
  })
  ends[0]?.()
  await changes[0]
  expect({ resumed, paused: batching.pause() !== undefined }).toEqual({ resumed: false, paused: true })
  ends[1]?.()
  await changes[1]
  await pause
  expect({ resumed, paused: batching.pause() !== undefined }).toEqual({ resumed: true, paused: false })
})

test('a change that fails lets everybody go on', async () => {
  const batching = openBatching()
  await expect(batching.whileStill(() => Promise.reject(new Error('no')))).rejects.toThrow('no')
  expect(batching.pause()).toBeUndefined()
})
