/** How a request ended, in vLLM's words where it has one. */
export type Finished = 'stop' | 'length' | 'abort' | 'error'

/** What this process has read and written since it started. It only grows, so that somebody else can compare it with their books. */
export type Counters = {
  /** `cached`: those among them that were known already. */
  read(tokens: number, cached?: number): void
  wrote(tokens: number): void
  heard(milliseconds: number): void
  ended(how: Finished): void
  /** All of it in the text that Prometheus reads. The names are vLLM's, so that whoever watches one engine can watch the other. */
  render(now: { readonly busy: number; readonly waiting: number }): string
}

/** For whoever takes the text over HTTP. */
export const METRICS_TYPE = 'text/plain; version=0.0.4; charset=utf-8'

const escapeLabel = (value: string): string => value.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')

export const openCounters = (model: string): Counters => {
  let [read, cached, wrote, heardMs] = [0, 0, 0, 0]
  const ended: Record<Finished, number> = { stop: 0, length: 0, abort: 0, error: 0 }
  const label = `model_name="${escapeLabel(model)}"`
  const metric = (name: string, type: string, help: string, values: readonly (readonly [string, number])[]): string =>
    `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n${values.map(([labels, value]) => `${name}${labels} ${value}\n`).join('')}`
  const one = (value: number): readonly [string, number][] => [[`{${label}}`, value]]

  return {
    read: (tokens, known = 0) => {
      read += tokens
      cached += known
    },
    wrote: (tokens) => {
      wrote += tokens
    },
    heard: (milliseconds) => {
      heardMs += milliseconds
    },
    ended: (how) => {
      ended[how] += 1
    },
    render: ({ busy, waiting }) =>
      [
        // Until when the counters were nothing: a restart begins anew.
        metric('process_start_time_seconds', 'gauge', 'Start of the process, in seconds since 1970.', [
          ['', performance.timeOrigin / 1000],
        ]),
        metric('vllm:prompt_tokens_total', 'counter', 'Tokens of prompts, cached ones included.', one(read)),
        metric('vllm:prefix_cache_hits_total', 'counter', 'Tokens of prompts that did not have to be computed.', one(cached)),
        metric('vllm:generation_tokens_total', 'counter', 'Tokens generated.', one(wrote)),
        metric(
          'vllm:request_success_total',
          'counter',
          'Requests by how they ended.',
          Object.entries(ended).map(([how, count]) => [`{${label},finished_reason="${how}"}`, count]),
        ),
        metric('parvis_engine_audio_milliseconds_total', 'counter', 'Length of the sound written down.', one(heardMs)),
        metric('vllm:num_requests_running', 'gauge', 'Requests at work.', one(busy)),
        metric('vllm:num_requests_waiting', 'gauge', 'Requests in line.', one(waiting)),
      ].join(''),
  }
}
