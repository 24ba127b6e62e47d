import { expect, test } from 'vitest'
import { readWindow } from './segments.ts'

const T = 1000
const at = (seconds: number): number => T + Math.round(seconds * 50)

test('segments with both their times are kept, and the next window begins where the last one ends', () => {
  const { stretches, doneSeconds } = readWindow([at(0.2), 1, 2, at(2), at(2.5), 3, at(4), at(4.5), 4], T, 30)
  expect(stretches).toEqual([
    { start: 0.2, end: 2, tokens: [at(0.2), 1, 2, at(2)] },
    { start: 2.5, end: 4, tokens: [at(2.5), 3, at(4)] },
  ])
  expect(doneSeconds).toBe(4)
})
test('a lone time at the end means that nothing more is said in the window', () => {
  const { stretches, doneSeconds } = readWindow([at(0), 1, at(2), at(3), 2, at(5)], T, 30)
  expect(stretches.map(({ start, end }) => [start, end])).toEqual([
    [0, 2],
    [3, 5],
  ])
  expect(doneSeconds).toBe(30)
})
test('a single segment takes the whole window with it', () => {
  expect(readWindow([at(0.2), 1, 2, at(2)], T, 4.5)).toEqual({
    stretches: [{ start: 0.2, end: 2, tokens: [at(0.2), 1, 2, at(2)] }],
    doneSeconds: 4.5,
  })
  expect(readWindow([at(0.2), 1, 2], T, 4.5).stretches).toMatchObject([{ start: 0.2, end: 4.5 }])
})
test('no words are no segment, and the window is done', () => {
  expect(readWindow([], T, 30)).toEqual({ stretches: [], doneSeconds: 30 })
  expect(readWindow([at(0)], T, 30)).toEqual({ stretches: [], doneSeconds: 30 })
  expect(readWindow([at(0), at(0)], T, 30).stretches).toEqual([])
})
test('no time lies behind the end of the sound', () => {
  expect(readWindow([at(0), 1, at(29)], T, 5).stretches).toMatchObject([{ start: 0, end: 5 }])
})
