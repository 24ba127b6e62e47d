import fc from 'fast-check'
import { expect, test } from 'vitest'
import type { UnitPrice } from '../kit/money.ts'
import { formatPrice, parsePrice, sayPrice } from './price.ts'

test('a price is read exactly, and shown as it is', () => {
  expect(parsePrice('0.15')).toBe(150_000n)
  expect(parsePrice('0')).toBe(0n)
  expect(parsePrice('3.6')).toBe(3_600_000n)
  expect(parsePrice('0.000001')).toBe(1n)
  expect(parsePrice('999999999.999999')).toBe(999_999_999_999_999n)
  expect(formatPrice(parsePrice('0.15'))).toBe('0.15')
  expect(formatPrice(parsePrice('12'))).toBe('12.00')
  expect(formatPrice(parsePrice('0.0075'))).toBe('0.0075')
})

test('a price is said with what it is for', () => {
  const price = { input: parsePrice('0.15'), output: parsePrice('0.35') }
  expect((['chat', 'embedding', 'rerank', 'audio', 'ocr'] as const).map((type) => sayPrice(type, price))).toEqual([
    '0.15 / 0.35 € per million tokens',
    '0.15 / 0.35 € per million tokens',
    '0.15 / 0.35 € per million tokens',
    '0.15 € per minute',
    '0.15 € per 1,000 pages',
  ])
})

test('every price comes back as it went out', () => {
  fc.assert(
    fc.property(fc.bigInt({ min: 0n, max: 999_999_999_999_999n }), (price) => {
      expect(parsePrice(formatPrice(price as UnitPrice))).toBe(price)
    }),
  )
})

test('what is no price is refused with the reason', () => {
  for (const text of ['', '-1', '0,15', '1e3', '.5', '1.', 'NaN', '0x10', '€1']) expect(() => parsePrice(text)).toThrow('is not a price')
  expect(() => parsePrice('0.0000001')).toThrow('at most 6 digits stand behind the point')
  expect(() => parsePrice('1234567890')).toThrow('at most 9 digits stand before the point')
})
