/** One value of a metric for each set of label values, in the order in which the labels were named. */
export type Counter = { add(labels: readonly string[], by?: number): void }
export type Gauge = { set(labels: readonly string[], value: number): void }

export type Metrics = {
  /** Only grows; its name ends in `_total`. */
  counter(name: string, help: string, labels: readonly string[]): Counter
  gauge(name: string, help: string, labels: readonly string[]): Gauge
  /** All of them in the text format that Prometheus reads. */
  render(): string
}

/** Label values come from requests; what would be the next series after so many is counted as `other`. */
const MAX_SERIES = 10_000

type Family = {
  help: string
  type: 'counter' | 'gauge'
  labels: readonly string[]
  series: Map<string, { labels: readonly string[]; value: number }>
}

const escapeLabel = (value: string): string => value.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')

/** What this process counts of itself, by name. Names and labels are fixed when a metric is made. */
export const openMetrics = (): Metrics => {
  const families = new Map<string, Family>()

  const family = (name: string, help: string, type: Family['type'], labels: readonly string[]): Family => {
    if (families.has(name)) throw new Error(`There are two metrics ${name}.`)
    const made: Family = { help, type, labels, series: new Map() }
    families.set(name, made)
    return made
  }

  const seriesOf = (of: Family, labels: readonly string[]): { value: number } => {
    const there = of.series.get(labels.join('\u0000'))
    if (there !== undefined) return there
    const named = of.series.size < MAX_SERIES ? labels : of.labels.map(() => 'other')
    const key = named.join('\u0000')
    const made = of.series.get(key) ?? { labels: named, value: 0 }
    of.series.set(key, made)
    return made
  }

  return {
    counter: (name, help, labels) => {
      const made = family(name, help, 'counter', labels)
      return {
        add: (values, by = 1) => {
          seriesOf(made, values).value += by
        },
      }
    },
    gauge: (name, help, labels) => {
      const made = family(name, help, 'gauge', labels)
      return {
        set: (values, value) => {
          seriesOf(made, values).value = value
        },
      }
    },
    render: () =>
      [...families]
        .map(([name, { help, type, labels, series }]) => {
          const lines = [...series.values()].map(({ labels: values, value }) => {
            const pairs = labels.map((label, index) => `${label}="${escapeLabel(values[index] ?? '')}"`).join(',')
            return `${name}${pairs === '' ? '' : `{${pairs}}`} ${value}\n`
          })
          return `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n${lines.join('')}`
        })
        .join(''),
  }
}
