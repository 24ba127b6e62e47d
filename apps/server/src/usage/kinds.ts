/**
 * What is added up and charged. `input_tokens` are those that were not cached: the parts of one answer never overlap, so that
 * any sum of them is a sum of what was used.
 */
export const KINDS = ['input_tokens', 'cached_input_tokens', 'output_tokens', 'audio_milliseconds'] as const
export type Kind = (typeof KINDS)[number]

/** An event's row as one row for each kind it has some of; to be joined laterally. */
export const UNITS = `(values ('input_tokens', input_tokens - cached_input_tokens), ('cached_input_tokens', cached_input_tokens),
    ('output_tokens', output_tokens), ('audio_milliseconds', audio_milliseconds)) as unit (kind, units)`
