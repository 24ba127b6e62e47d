import { z } from 'zod'

/** One value of a metric for each set of label values, in the order in which the labels were named. */
export type Counter = { add(labels: readonly string[], by?: number): void }
export type Gauge = { set(labels: readonly string[], value: number): void }

/** What a gauge of several processes is together. */
export type Together = 'sum' | 'least'

export type Metrics = {
  /** Only grows; its name ends in `_total`. */
  counter(name: string, help: string, labels: readonly string[]): Counter
  gauge(name: string, help: string, labels: readonly string[], together?: Together): Gauge
  /** All of them as they are now, to be added to those of other processes. */
  families(): Families
  render(): string
}

/** Metrics of one process or of several together. */
export const Families = z.array(
  z.object({
    name: z.string(),
    help: z.string(),
    type: z.enum(['counter', 'gauge']),
    together: z.enum(['sum', 'least']),
    labels: z.array(z.string()),
    series: z.array(z.object({ labels: z.array(z.string()), value: z.number() })),
  }),
)
export type Families = z.infer<typeof Families>

/** Label values come from requests; what would be the next series after so many is counted as `other`. */
const MAX_SERIES = 10_000

type Series = Map<string, { labels: readonly string[]; value: number }>
type Family = Omit<Families[number], 'series' | 'name'> & { readonly series: Series }

const listed = (families: ReadonlyMap<string, Family>): Families =>
  [...families].map(([name, { series, ...made }]) => ({
    ...made,
    name,
    series: [...series.values()].map(({ labels, value }) => ({ labels: [...labels], value })),
  }))

const keyOf = (labels: readonly string[]): string => labels.join('\u0000')

/** What this process counts of itself, by name. Names and labels are fixed when a metric is made. */
export const openMetrics = (): Metrics => {
  const families = new Map<string, Family>()

  const family = (name: string, made: Omit<Family, 'series'>): Family => {
    if (families.has(name)) throw new Error(`There are two metrics ${name}.`)
    const whole: Family = { ...made, series: new Map() }
    families.set(name, whole)
    return whole
  }

  const seriesOf = (of: Family, labels: readonly string[]): { value: number } => {
    const there = of.series.get(keyOf(labels))
    if (there !== undefined) return there
    const named = of.series.size < MAX_SERIES ? labels : of.labels.map(() => 'other')
    const key = keyOf(named)
    const made = of.series.get(key) ?? { labels: named, value: 0 }
    of.series.set(key, made)
    return made
  }

  return {
    counter: (name, help, labels) => {
      const made = family(name, { help, type: 'counter', together: 'sum', labels: [...labels] })
      return {
        add: (values, by = 1) => {
          seriesOf(made, values).value += by
        },
      }
    },
    gauge: (name, help, labels, together = 'sum') => {
      const made = family(name, { help, type: 'gauge', together, labels: [...labels] })
      return {
        set: (values, value) => {
          seriesOf(made, values).value = value
        },
      }
    },
    families: () => listed(families),
    render: () => renderFamilies(listed(families)),
  }
}

/** Metrics of several processes as one: counters are added, and gauges as each of them says. */
export const addUp = (all: readonly Families[]): Families => {
  const together = new Map<string, Family>()
  for (const { name, series, ...made } of all.flat()) {
    const sum = together.get(name) ?? { ...made, series: new Map() }
    together.set(name, sum)
    for (const { labels, value } of series) {
      const before = sum.series.get(keyOf(labels))?.value
      const least = made.together === 'least'
      sum.series.set(keyOf(labels), {
        labels,
        value: before === undefined ? value : least ? Math.min(before, value) : before + value,
      })
    }
  }
  return listed(together)
}

const escapeLabel = (value: string): string => value.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')

/** In the text format that Prometheus reads. */
export const renderFamilies = (families: Families): string =>
  families
    .map(({ name, help, type, labels, series }) => {
      const lines = series.map(({ labels: values, value }) => {
        const pairs = labels.map((label, index) => `${label}="${escapeLabel(values[index] ?? '')}"`).join(',')
        return `${name}${pairs === '' ? '' : `{${pairs}}`} ${value}\n`
      })
      return `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n${lines.join('')}`
    })
    .join('')
