import type { UnitPrice } from '../kit/money.ts'
import type { ModelType, Price } from './model.ts'

const MICRO_DIGITS = 6
const MAX_EUROS_DIGITS = 9

/** "0.15", in euros per million tokens (or whatever the price is for), becomes 150000 micro-euros; exact, or an error. */
export const parsePrice = (text: string): UnitPrice => {
  const match = /^(\d+)(?:\.(\d+))?$/.exec(text.trim())
  if (match === null) throw new Error(`${JSON.stringify(text)} is not a price: write euros, for example 0.15.`)
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

export const PRICE_UNITS = ['million_tokens', 'minute', 'thousand_pages'] as const
type Quoted = { readonly unit: (typeof PRICE_UNITS)[number]; readonly words: string }

const TOKENS: Quoted = { unit: 'million_tokens', words: 'per million tokens' }
const QUOTED: Record<ModelType, Quoted> = {
  chat: TOKENS,
  embedding: TOKENS,
  rerank: TOKENS,
  audio: { unit: 'minute', words: 'per minute' },
  ocr: { unit: 'thousand_pages', words: 'per 1,000 pages' },
}

/** What a price is for, by what its model is for. */
export const priceUnitOf = (type: ModelType): Quoted['unit'] => QUOTED[type].unit

/** "0.15 / 0.35 € per million tokens", "0.003 € per minute". */
export const sayPrice = (type: ModelType, { input, output }: Pick<Price, 'input' | 'output'>): string => {
  const { unit, words } = QUOTED[type]
  return `${formatPrice(input)}${unit === 'million_tokens' ? ` / ${formatPrice(output)}` : ''} € ${words}`
}
