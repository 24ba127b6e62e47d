import { expect, test } from 'vitest'
import { openProgress } from './transfer-progress.ts'

const MB = 1_000_000

const watch = (isTTY: boolean) => {
  const written: string[] = []
  let nowMs = 0
  const progress = openProgress({ isTTY, write: (text: string) => written.push(text) }, () => nowMs)
  return {
    written,
    progress,
    at: (ms: number, receivedMb: number) => ((nowMs = ms), progress.update({ receivedBytes: receivedMb * MB, totalBytes: 100 * MB })),
  }
}

test('on a terminal one line is written over, with bytes, rate and the time that is left', () => {
  const { written, at, progress } = watch(true)
  at(0, 0)
  at(100, 1) // too soon to show
  at(1_000, 10)
  at(2_000, 20)
  expect(written).toEqual([
    '\r\u001b[K0 %  0 B of 100 MB',
    '\r\u001b[K10 %  10 MB of 100 MB  10 MB/s  9 s left',
    '\r\u001b[K20 %  20 MB of 100 MB  10 MB/s  8 s left',
  ])
  progress.close()
  progress.close()
  expect(written.at(-1)).toBe('\r\u001b[K')
  expect(written).toHaveLength(4)
})

test('in a log a line comes now and then', () => {
  const { written, at, progress } = watch(false)
  for (let second = 0; second <= 30; second += 1) at(second * 1_000, second)
  progress.close()
  expect(written).toHaveLength(4)
  expect(written.every((line) => line.endsWith('\n') && !line.includes('\r'))).toBe(true)
})

test('the rate is that of the last seconds, and a transfer that starts over has none', () => {
  const { written, at } = watch(true)
  at(0, 0)
  at(1_000, 50)
  at(9_000, 50)
  expect(written.at(-1)).toBe('\r\u001b[K50 %  50 MB of 100 MB')
  at(10_000, 0)
  expect(written.at(-1)).toBe('\r\u001b[K0 %  0 B of 100 MB')
})
