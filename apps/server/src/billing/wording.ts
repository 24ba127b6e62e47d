import { formatPrice } from '../catalog/price.ts'
import type { UnitPrice } from '../kit/money.ts'
import type { LineKey, Meter } from './rate.ts'

/** How each meter is said: in a sku, to people, in the price list. */
const METER: Record<Meter, { sku: string; words: string; unit: 'token' | 'second' | 'page' | 'node_minute'; quoted: string }> = {
  input_token: { sku: 'input', words: 'input tokens', unit: 'token', quoted: 'per million tokens' },
  input_cached_token: { sku: 'input_cached', words: 'cached input tokens', unit: 'token', quoted: 'per million tokens' },
  output_token: { sku: 'output', words: 'output tokens', unit: 'token', quoted: 'per million tokens' },
  input_duration: { sku: 'input_duration', words: 'audio', unit: 'second', quoted: 'per minute' },
  page: { sku: 'page', words: 'pages', unit: 'page', quoted: 'per 1,000 pages' },
  node_minute: { sku: '', words: 'node minutes', unit: 'node_minute', quoted: 'per minute' },
}

export const FREE_TIER_SKU = '/ai/generative_apis/consumption/offer'
export const FREE_TIER_DEDUCTION_SKU = `/offer/deducted${FREE_TIER_SKU}`
/** As it stands on the vendor's bills (serverless-platform.md 3.2). */
export const FREE_TIER_DEDUCTION = 'Offer deducted - Generative APIs Free Tier'

type What = Pick<LineKey, 'product' | 'mode' | 'meter'>

/**
 * The same in the price list and on the bill (control-plane.md 7.1). The model's name stands in it as it is, so that no two models
 * share one.
 */
export const skuOf = (line: What, region: string): string =>
  line.meter === 'node_minute'
    ? `/ai/inference_dedicated/deployment/${line.product.toLowerCase()}/${region}`
    : `/ai/generative_apis/consumption/${line.product}_${METER[line.meter].sku}${line.mode === 'batch' ? '_batch' : ''}/${region}`

export const kindOf = (line: Pick<LineKey, 'mode' | 'meter'>): string =>
  `${line.mode === 'batch' ? 'batch ' : ''}${METER[line.meter].words}`

export const resourceNameOf = (line: What, region: string): string =>
  line.meter === 'node_minute' ? `${line.product} - ${region.toUpperCase()}` : `${line.product} - ${kindOf(line)} - ${region.toUpperCase()}`

export const productNameOf = (meter: Meter): string => (meter === 'node_minute' ? 'Inference - Deployment' : 'Generative APIs')

export const unitOf = (meter: Meter): (typeof METER)[Meter]['unit'] => METER[meter].unit

/** "0.90 per million tokens", a batch already halved. */
export const priceOf = (line: Pick<LineKey, 'price' | 'mode' | 'meter'>): string => {
  // A tenth of a micro-euro more, so that half of an odd price is whole, too.
  const tenths = line.mode === 'batch' ? line.price * 5n : line.price * 10n
  const price = formatPrice((tenths / 10n) as UnitPrice)
  return `${tenths % 10n === 0n ? price : `${price.padEnd(price.indexOf('.') + 7, '0')}5`} ${METER[line.meter].quoted}`
}

const MILLISECONDS = 1000n

/** Units as people count them: tokens, pages and minutes as they are, audio in seconds. */
export const quantityOf = (meter: Meter, units: bigint): string => {
  if (meter !== 'input_duration') return units.toString()
  const rest = units % MILLISECONDS
  return `${units / MILLISECONDS}${rest === 0n ? '' : `.${rest.toString().padStart(3, '0').replace(/0+$/, '')}`}`
}

/** The unit of a quantity, for a sentence. */
export const unitWordsOf = (meter: Meter): string =>
  ({ token: 'tokens', second: 's', page: 'pages', node_minute: 'min' })[METER[meter].unit]
