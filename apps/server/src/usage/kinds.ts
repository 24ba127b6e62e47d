/**
 * What is added up and charged. `input_tokens` are those that were not cached: the parts of one answer never overlap, so that
 * any sum of them is a sum of what was used.
 */
export const KINDS = ['input_tokens', 'cached_input_tokens', 'output_tokens', 'audio_milliseconds', 'pages'] as const
export type Kind = (typeof KINDS)[number]

/** A begun second of a file is a whole one (serverless-platform.md 3.5): what its caller is told, and what is billed. The event knows the exact length. */
const WHOLE_SECONDS = '(audio_milliseconds + 999) / 1000 * 1000'

/** An event's row as one row for each kind it has some of; to be joined laterally. */
export const UNITS = `(values ('input_tokens', input_tokens - cached_input_tokens), ('cached_input_tokens', cached_input_tokens),
    ('output_tokens', output_tokens), ('audio_milliseconds', ${WHOLE_SECONDS}), ('pages', pages)) as unit (kind, units)`

/**
 * The same for a group of events: their sums first, and only those as rows. A row for each kind of each event, sorted into their groups, took
 * four to ten times as long.
 */
export const SUMS = `sum(input_tokens - cached_input_tokens) as input, count(*) filter (where input_tokens <> cached_input_tokens) as input_events,
    sum(cached_input_tokens) as cached, count(*) filter (where cached_input_tokens <> 0) as cached_events,
    sum(output_tokens) as output, count(*) filter (where output_tokens <> 0) as output_events,
    sum(${WHOLE_SECONDS}) as audio, count(*) filter (where audio_milliseconds <> 0) as audio_events,
    sum(pages) as pages, count(*) filter (where pages <> 0) as page_events`
export const SUMMED_UNITS = `(values ('input_tokens', input::bigint, input_events), ('cached_input_tokens', cached::bigint, cached_events),
    ('output_tokens', output::bigint, output_events), ('audio_milliseconds', audio::bigint, audio_events),
    ('pages', pages::bigint, page_events)) as unit (kind, units, events)`
