import type { UnitPrice } from '../kit/money.ts'

const MICRO_DIGITS = 6
const MAX_EUROS_DIGITS = 9

/** "0.15", in euros per million units, becomes 150000 micro-euros; exact, or an error. */
export const parsePrice = (text: string): UnitPrice => {
  const match = /^(\d+)(?:\.(\d+))?$/.exec(text.trim())
  if (match === null) throw new Error(`${JSON.stringify(text)} is not a price: write euros per million units, for example 0.15.`)
  const [, whole = '', fraction = ''] = match
  if (whole.length > MAX_EUROS_DIGITS)
    throw new Error(`The price ${text} is too high: at most ${MAX_EUROS_DIGITS} digits stand before the point.`)
  if (fraction.length > MICRO_DIGITS)
    throw new Error(`The price ${text} is too fine: at most ${MICRO_DIGITS} digits stand behind the point.`)
  return BigInt(whole + fraction.padEnd(MICRO_DIGITS, '0')) as UnitPrice
}

/** Two digits behind the point, more only where they say something. */
export const formatPrice = (price: UnitPrice): string => {
  const digits = price.toString().padStart(MICRO_DIGITS + 1, '0')
  const fraction = digits.slice(-MICRO_DIGITS).replace(/0{1,4}$/, '')
  return `${digits.slice(0, -MICRO_DIGITS)}.${fraction}`
}
