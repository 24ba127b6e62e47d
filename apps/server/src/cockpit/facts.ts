import { z } from 'zod'
import { forbidden } from '../kit/denial.ts'
import { pageOf } from '../kit/listing.ts'
import { type Manage, pageQuery } from '../kit/management.ts'
import { no, yes } from '../kit/outcome.ts'
import { DEFAULT_RETENTION_DAYS, MAX_RETENTION_DAYS, MIN_RETENTION_DAYS, SOURCE_TYPES } from './data-source.ts'
import { type CockpitRoom, cockpitPage, GivenProject, GLOBAL, projectOf, READS, READS_ANYWHERE, REGIONAL, WRITES } from './shapes.ts'

const Retention = z.object({ min_days: z.int(), max_days: z.int(), default_days: z.int() })
const retentionOf = (type: keyof typeof DEFAULT_RETENTION_DAYS): z.infer<typeof Retention> => ({
  min_days: MIN_RETENTION_DAYS,
  max_days: MAX_RETENTION_DAYS,
  default_days: DEFAULT_RETENTION_DAYS[type],
})

const CONFIG = {
  custom_logs_retention: retentionOf('logs'),
  custom_metrics_retention: retentionOf('metrics'),
  custom_traces_retention: retentionOf('traces'),
  product_logs_retention: retentionOf('logs'),
  product_metrics_retention: retentionOf('metrics'),
}

const Plan = z.object({
  name: z.enum(['free']),
  sample_ingestion_price: z.int(),
  logs_ingestion_price: z.int(),
  traces_ingestion_price: z.int(),
  monthly_price: z.int(),
  retention_metrics_interval: z.string(),
  retention_logs_interval: z.string(),
  retention_traces_interval: z.string(),
})

/** Plans are no more; old clients get the one answer that they are still given (control-plane.md 8.3). */
const FREE: z.infer<typeof Plan> = {
  name: 'free',
  sample_ingestion_price: 15,
  logs_ingestion_price: 35,
  traces_ingestion_price: 35,
  monthly_price: 0,
  retention_metrics_interval: `${DEFAULT_RETENTION_DAYS.metrics * 86_400}s`,
  retention_logs_interval: `${DEFAULT_RETENTION_DAYS.logs * 86_400}s`,
  retention_traces_interval: `${DEFAULT_RETENTION_DAYS.traces * 86_400}s`,
}

/** What has metrics here (serverless-platform.md 6.1). */
const PRODUCTS = [
  { name: 'generative-apis', display_name: 'Generative APIs', family_name: 'AI', resource_types: ['generative_apis'] },
  {
    name: 'inference',
    display_name: 'Managed Inference',
    family_name: 'AI',
    resource_types: ['inference_deployment', 'llm_inference_deployment'],
  },
]

const Usage = z.object({
  data_source_id: z.guid().nullable(),
  project_id: z.guid(),
  data_source_origin: z.enum(['scaleway', 'custom']),
  data_source_type: z.enum(SOURCE_TYPES),
  unit: z.enum(['samples', 'bytes']),
  interval: z.string(),
  quantity_over_interval: z.int(),
  region: z.string(),
})

/** Seconds with an `s`; Go writes a fraction (control-plane.md 2.4). */
const Interval = z
  .string()
  .regex(/^\d{1,9}(\.\d{1,9})?s$/)
  .transform((text) => `${Number.parseInt(text, 10)}s`)
  .default('86400s')

/** control-plane.md 8.1 and 8.3: what is the same for everybody, and how much was taken in. */
export const factRoutes = (manage: Manage, { region }: CockpitRoom): void => {
  manage({
    method: 'GET',
    path: `${REGIONAL}/config`,
    summary: 'Read how long data may be kept.',
    needs: READS_ANYWHERE,
    answer: z.object({
      custom_logs_retention: Retention,
      custom_metrics_retention: Retention,
      custom_traces_retention: Retention,
      product_logs_retention: Retention,
      product_metrics_retention: Retention,
    }),
    handle: async () => yes(CONFIG),
  })

  manage({
    method: 'GET',
    path: `${REGIONAL}/usage-overview`,
    summary: 'Read how much the data sources of a project took in. Nothing is taken in from outside, so it is nothing.',
    needs: READS,
    query: z.looseObject({ ...GivenProject, interval: Interval }),
    answer: z.object({
      scaleway_metrics_usage: Usage,
      scaleway_logs_usage: Usage,
      external_metrics_usage: Usage,
      external_logs_usage: Usage,
      external_traces_usage: Usage,
    }),
    handle: async ({ query, actor, may }) => {
      const projectId = projectOf(actor, query)
      if (!may(READS, projectId)) return no(forbidden(READS))
      const usageOf = (
        data_source_origin: 'scaleway' | 'custom',
        data_source_type: keyof typeof DEFAULT_RETENTION_DAYS,
      ): z.infer<typeof Usage> => ({
        data_source_id: null,
        project_id: projectId,
        data_source_origin,
        data_source_type,
        unit: data_source_type === 'metrics' ? 'samples' : 'bytes',
        interval: query.interval,
        quantity_over_interval: 0,
        region,
      })
      return yes({
        scaleway_metrics_usage: usageOf('scaleway', 'metrics'),
        scaleway_logs_usage: usageOf('scaleway', 'logs'),
        external_metrics_usage: usageOf('custom', 'metrics'),
        external_logs_usage: usageOf('custom', 'logs'),
        external_traces_usage: usageOf('custom', 'traces'),
      })
    },
  })

  manage({
    method: 'GET',
    path: `${REGIONAL}/products`,
    summary: 'List what has metrics here.',
    needs: READS_ANYWHERE,
    query: cockpitPage([
      'created_at_asc',
      'created_at_desc',
      'display_name_asc',
      'display_name_desc',
      'family_name_asc',
      'family_name_desc',
    ]),
    answer: z.object({
      products_list: z.array(
        z.object({ name: z.string(), display_name: z.string(), family_name: z.string(), resource_types: z.array(z.string()) }),
      ),
      total_count: z.int(),
    }),
    handle: async ({ query }) => {
      const sorted = query.order_by.endsWith('_desc') ? PRODUCTS.toReversed() : PRODUCTS
      return yes({ products_list: pageOf(sorted, query), total_count: PRODUCTS.length })
    },
  })

  manage({
    method: 'GET',
    path: `${GLOBAL}/plans`,
    summary: 'List the plans: there is one.',
    needs: READS_ANYWHERE,
    query: pageQuery({ max: 1_000, fallback: 50, orders: ['name_asc', 'name_desc'], clamp: true }),
    answer: z.object({ plans: z.array(Plan), total_count: z.int() }),
    handle: async ({ query }) => yes({ plans: query.page === 1 ? [FREE] : [], total_count: 1 }),
  })

  manage({
    method: 'GET',
    path: `${GLOBAL}/current-plan`,
    summary: "Read a project's plan.",
    needs: READS,
    query: z.looseObject(GivenProject),
    answer: Plan,
    handle: async ({ query, actor, may }) => (may(READS, projectOf(actor, query)) ? yes(FREE) : no(forbidden(READS))),
  })

  manage({
    method: 'PATCH',
    path: `${GLOBAL}/plans`,
    summary: 'Select a plan: whatever is asked for, it stays the one there is.',
    needs: WRITES,
    body: z.looseObject({ ...GivenProject, plan_name: z.enum(['unknown_name', 'free', 'premium', 'custom']).optional() }),
    answer: Plan,
    handle: async ({ body, actor, may }) => (may(WRITES, projectOf(actor, body)) ? yes(FREE) : no(forbidden(WRITES))),
  })
}
