/** A trillionth of a euro. One token at €0.90 per million costs exactly 900_000 of them. */
export type PicoEuro = bigint & { readonly __unit: 'picoeuro' }

/** Micro-euros per million units, which is the same number as pico-euros per unit. Units times price is exact. */
export type UnitPrice = bigint & { readonly __unit: 'micro-euro per million' }

export const charge = (units: bigint, price: UnitPrice): PicoEuro => (units * price) as PicoEuro
