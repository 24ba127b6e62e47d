import { expect, test } from 'vitest'
import { openDeadlines } from './deadlines.ts'

test('a deadline fires once, in its turn, and not when it was moved or removed', async () => {
  const deadlines = openDeadlines()
  const fired: string[] = []
  deadlines.add(1, () => fired.push('first'))
  const removed = deadlines.add(1, () => fired.push('removed'))
  const moved = deadlines.add(1, () => fired.push('moved'))
  deadlines.remove(removed)
  deadlines.move(moved, Number.POSITIVE_INFINITY)
  await new Promise<void>((resolve) => void deadlines.add(150, resolve))
  expect(fired).toEqual(['first'])
  await new Promise<void>((resolve) => {
    deadlines.again(moved, 1)
    deadlines.add(150, resolve)
  })
  expect(fired).toEqual(['first', 'moved'])
  deadlines.add(1, () => fired.push('closed'))
  deadlines.close()
  await new Promise((resolve) => setTimeout(resolve, 100))
  expect(fired).toEqual(['first', 'moved'])
})
