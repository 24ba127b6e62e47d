/** A trillionth of a euro. One token at €0.90 per million costs exactly 900_000 of them. */
export type PicoEuro = bigint & { readonly __unit: 'picoeuro' }

/** Micro-euros per million units, which is the same number as pico-euros per unit. Units times price is exact. */
export type UnitPrice = bigint & { readonly __unit: 'micro-euro per million' }

/** Whole cents: what a bill is made of. */
export type Cents = bigint & { readonly __unit: 'cent' }

/** An amount as it goes over the wire (control-plane.md 2.4): both parts have the same sign. */
export type Money = { readonly currency_code: string; readonly units: number; readonly nanos: number }

const PICO_PER_EURO = 1_000_000_000_000n
const PICO_PER_CENT = 10_000_000_000n
const PICO_PER_NANO = 1_000n
const PICO_DIGITS = 12

export const charge = (units: bigint, price: UnitPrice): PicoEuro => (units * price) as PicoEuro

/** Division of what is not negative, upward. */
export const ceilDiv = (amount: bigint, by: bigint): bigint => (amount + by - 1n) / by

/** The one place where a fraction of a cent is decided: upward, once per invoice line. */
export const roundUpToCents = (amount: PicoEuro): Cents => ceilDiv(amount, PICO_PER_CENT) as Cents

export const centsToPico = (cents: Cents): PicoEuro => (cents * PICO_PER_CENT) as PicoEuro

export const sumCents = (amounts: Iterable<Cents>): Cents => {
  let sum = 0n
  for (const amount of amounts) sum += amount
  return sum as Cents
}

/** A fraction of a nano-euro is left off: only amounts that have none are put on the wire this way. */
export const picoToMoney = (amount: PicoEuro): Money => ({
  currency_code: 'EUR',
  units: Number(amount / PICO_PER_EURO),
  nanos: Number((amount % PICO_PER_EURO) / PICO_PER_NANO),
})

export const centsToMoney = (cents: Cents): Money => picoToMoney(centsToPico(cents))

/** For the few fields that the contract has as a number of euros: the double that is nearest to the exact decimal. */
export const centsToEuros = (cents: Cents): number => Number(formatCents(cents))

const absolute = (amount: bigint): bigint => (amount < 0n ? -amount : amount)

/** "1.35", "-0.50": exact, for people and files. */
export const formatCents = (cents: Cents): string => {
  const digits = absolute(cents).toString().padStart(3, '0')
  return `${cents < 0n ? '-' : ''}${digits.slice(0, -2)}.${digits.slice(-2)}`
}

/** Euros as an exact decimal: two digits behind the point, more only where they say something. */
export const formatPico = (amount: PicoEuro): string => {
  const digits = absolute(amount)
    .toString()
    .padStart(PICO_DIGITS + 1, '0')
  const fraction = digits.slice(-PICO_DIGITS).replace(/0{1,10}$/, '')
  return `${amount < 0n ? '-' : ''}${digits.slice(0, -PICO_DIGITS)}.${fraction}`
}

/**
 * Splits an amount in proportion to weights by largest remainder, ties to the earlier: the parts add up to the whole, none is
 * more than its weight when the whole is not more than all weights, and a second run gives the same parts.
 */
export const splitCents = (whole: Cents, weights: readonly bigint[]): Cents[] => {
  const sum = weights.reduce((total, weight) => total + weight, 0n)
  if (sum === 0n) return weights.map(() => 0n as Cents)
  const parts = weights.map((weight, index) => ({ index, part: (whole * weight) / sum, remainder: (whole * weight) % sum }))
  const left = Number(whole - parts.reduce((total, { part }) => total + part, 0n))
  const luckiest = parts.toSorted((a, b) => (a.remainder === b.remainder ? a.index - b.index : a.remainder > b.remainder ? -1 : 1))
  const lucky = new Set(luckiest.slice(0, left).map(({ index }) => index))
  return parts.map(({ index, part }) => (part + (lucky.has(index) ? 1n : 0n)) as Cents)
}
