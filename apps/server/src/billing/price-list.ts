import { z } from 'zod'
import type { Model } from '../catalog/model.ts'
import { instantToDate } from '../kit/clock.ts'
import { pageOf } from '../kit/listing.ts'
import { listOf, type Manage, pageQuery, queryFlag } from '../kit/management.ts'
import { type PicoEuro, picoToMoney } from '../kit/money.ts'
import { yes } from '../kit/outcome.ts'
import { MoneyJson, ONE_PAGE } from './json.ts'
import type { Meter, Mode } from './rate.ts'
import { kindOf, skuOf } from './wording.ts'

// Product catalogue v2alpha1: the public price list (control-plane.md 9).

type Row = { readonly meter: Meter; readonly mode: Mode; readonly price: bigint }

const MODES: readonly Mode[] = ['realtime', 'batch']

/**
 * What a model is billed for: sound by the minute, documents by the page; otherwise input always, cached input where it has a price of its
 * own, output where it makes some.
 */
const metersOf = ({ type, price }: Model): readonly { meter: Meter; price: bigint }[] => {
  if (type === 'audio') return [{ meter: 'input_duration', price: price.input }]
  if (type === 'ocr') return [{ meter: 'page', price: price.input }]
  return [
    { meter: 'input_token', price: price.input },
    ...(price.cachedInput === price.input ? [] : [{ meter: 'input_cached_token' as const, price: price.cachedInput }]),
    ...(type === 'chat' ? [{ meter: 'output_token' as const, price: price.output }] : []),
  ]
}

const rowsOf = (model: Model): Row[] => metersOf(model).flatMap((each) => MODES.map((mode) => ({ ...each, mode })))

const SERVES: Record<Model['type'], { readonly tasks: readonly string[]; readonly apis: readonly string[] }> = {
  chat: { tasks: ['chat'], apis: ['/v1/chat/completions'] },
  embedding: { tasks: ['embeddings'], apis: ['/v1/embeddings'] },
  // The contract has no task for a reranker.
  rerank: { tasks: [], apis: ['/v1/rerank'] },
  ocr: { tasks: ['vision'], apis: ['/v1/ocr'] },
  audio: { tasks: ['audio_transcription'], apis: ['/v1/audio/transcriptions'] },
}

/** The life cycle in the vendor's words (control-plane.md 9). */
const STATUS: Record<Model['status'], string> = {
  preview: 'preview',
  active: 'general_availability',
  deprecated: 'end_of_new_features',
  eol: 'retired',
}

type Listed = { readonly unit: 'token' | 'second' | 'page'; readonly size: number; readonly picoPerQuoted: bigint }

// Micro-euros per million tokens are nano-euros per thousand; a minute of audio and a thousand pages are quoted as such. The contract has no
// word for a page.
const TOKENS: Listed = { unit: 'token', size: 1_000, picoPerQuoted: 1_000n }
const SECONDS: Listed = { unit: 'second', size: 60, picoPerQuoted: 1_000_000n }
const PAGES: Listed = { unit: 'page', size: 1_000, picoPerQuoted: 1_000_000n }
const listedBy = (meter: Meter): Listed => (meter === 'input_duration' ? SECONDS : meter === 'page' ? PAGES : TOKENS)

const priceOf = ({ meter, mode, price }: Row): PicoEuro => {
  const pico = price * listedBy(meter).picoPerQuoted
  return (mode === 'batch' ? pico / 2n : pico) as PicoEuro
}

const ProductJson = z.object({
  sku: z.string(),
  service_category: z.string(),
  product_category: z.string(),
  product: z.string(),
  variant: z.string(),
  description: z.string(),
  locality: z.object({ region: z.string() }),
  price: z.object({ retail_price: MoneyJson }),
  properties: z.object({ generative_apis: z.looseObject({}) }),
  unit_of_measure: z.object({ unit: z.string(), size: z.int() }),
  status: z.string(),
  badges: z.array(z.string()),
  end_of_life_at: z.string().nullable(),
  end_of_growth_at: z.string().nullable(),
  end_of_sale_at: z.string().nullable(),
})

const toProduct = (model: Model, row: Row, region: string): z.infer<typeof ProductJson> => {
  const line = { product: model.name, ...row }
  const { tasks, apis } = SERVES[model.type]
  const { unit, size } = listedBy(row.meter)
  return {
    sku: skuOf(line, region),
    service_category: 'AI',
    product_category: 'Generative APIs',
    // The string that clients send: the vendor's command line joins on it.
    product: model.name,
    variant: `${model.name} - ${kindOf(row)} - ${region}`,
    description: `${model.name} by ${model.ownedBy}: ${kindOf(row)}`,
    locality: { region },
    price: { retail_price: picoToMoney(priceOf(row)) },
    properties: {
      generative_apis: {
        reasoning: model.features.reasoning,
        supported_apis: apis,
        consumption_mode: row.mode,
        provider_name: model.ownedBy,
        tasks: model.features.vision ? [...tasks, 'vision'] : tasks,
        token_type: row.meter,
        supported_reasoning_values: [],
        default_reasoning_value: null,
      },
    },
    unit_of_measure: { unit, size },
    status: STATUS[model.status],
    badges: [],
    end_of_life_at: model.endOfLifeAt === null ? null : instantToDate(model.endOfLifeAt).toISOString(),
    end_of_growth_at: null,
    end_of_sale_at: null,
  }
}

export const priceListRoutes = (manage: Manage, room: { models(): readonly Model[]; readonly region: string }): void => {
  const { region } = room
  /** Every price is of one region. Clients ask for theirs, or for a zone of it (`fr-par-1`). */
  const isHere = (query: {
    global?: boolean | undefined
    region?: string | undefined
    zone?: string | undefined
    datacenter?: string | undefined
  }) =>
    query.global !== true &&
    query.datacenter === undefined &&
    (query.region === undefined || query.region === region) &&
    (query.zone === undefined || query.zone.startsWith(`${region}-`))

  manage({
    method: 'GET',
    path: '/product-catalog/v2alpha1/public-catalog/products',
    summary: 'The price list. It needs no key.',
    needs: 'nobody',
    query: pageQuery({ max: ONE_PAGE, fallback: ONE_PAGE, orders: ['sku_asc'], clamp: true }).extend({
      product_types: listOf(z.string()),
      status: listOf(z.string()),
      api_ids: listOf(z.string()),
      global: queryFlag.optional(),
      region: z.string().optional(),
      zone: z.string().optional(),
      datacenter: z.string().optional(),
    }),
    answer: z.object({ products: z.array(ProductJson), total_count: z.int() }),
    handle: async ({ query }) => {
      const types = query.product_types.filter((type) => !type.startsWith('unknown_'))
      const states = query.status.filter((status) => !status.startsWith('unknown_'))
      const asked = isHere(query) && (types.length === 0 || types.includes('generative_apis'))
      const products = (asked ? room.models() : [])
        .flatMap((model) => rowsOf(model).map((row) => toProduct(model, row, region)))
        .filter(({ status }) => states.length === 0 || states.includes(status))
        .toSorted((a, b) => (a.sku < b.sku ? -1 : 1))
      return yes({ products: pageOf(products, query), total_count: products.length })
    },
  })
}
