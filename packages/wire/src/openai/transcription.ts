import { z } from 'zod'

/** What can be asked for (data-plane.md 11.1). Diarization is not among it: no engine of ours tells speakers apart. */
export const TRANSCRIPT_FORMATS = ['json', 'text', 'srt', 'verbose_json', 'vtt'] as const
export type TranscriptFormat = (typeof TRANSCRIPT_FORMATS)[number]

const Seconds = z.number().nonnegative()

/** The form of `POST /v1/audio/transcriptions`, as far as we read it (data-plane.md 11.1). */
export const TranscriptionForm = z.looseObject({
  file: z.string().meta({ format: 'binary', description: 'Sound: flac, mp3, mpeg, mpga, oga, ogg or wav, at most 25 MB.' }),
  model: z.string().min(1),
  language: z.string().optional(),
  prompt: z.string().optional(),
  response_format: z.enum(TRANSCRIPT_FORMATS).optional(),
  temperature: z.number().optional(),
  stream: z.boolean().optional(),
  'timestamp_granularities[]': z.array(z.enum(['segment', 'word'])).optional(),
})

/** A stretch of speech. What stands beside its times and text differs from engine to engine, and passes. */
export const TranscriptSegment = z.looseObject({ start: Seconds, end: Seconds, text: z.string() })
export type TranscriptSegment = z.infer<typeof TranscriptSegment>

const DurationUsage = z.looseObject({ type: z.literal('duration'), seconds: Seconds })

/**
 * An engine's `json` or `verbose_json`. Ours tells the exact duration in both; vLLM tells it in words of its own, as text; OpenAI's
 * `json` has it in whole seconds, as usage.
 */
export const EngineTranscript = z.looseObject({
  text: z.string(),
  language: z.string().nullish(),
  duration: z
    .union([
      Seconds,
      z
        .string()
        .regex(/^\d+(\.\d+)?$/)
        .transform(Number),
    ])
    .nullish(),
  segments: z.array(TranscriptSegment).nullish(),
  words: z.array(z.looseObject({ word: z.string(), start: Seconds, end: Seconds })).nullish(),
  usage: z.union([DurationUsage, z.looseObject({})]).nullish(),
})
export type EngineTranscript = z.infer<typeof EngineTranscript>

/** One event of a stream: OpenAI's two kinds, and vLLM's own (data-plane.md 11.5). */
export const EngineTranscriptEvent = z.union([
  z.looseObject({ type: z.literal('transcript.text.delta'), delta: z.string() }),
  z.looseObject({
    type: z.literal('transcript.text.done'),
    text: z.string(),
    duration: Seconds.nullish(),
    usage: z.union([DurationUsage, z.looseObject({})]).nullish(),
  }),
  z.looseObject({
    object: z.literal('transcription.chunk'),
    choices: z.array(z.looseObject({ delta: z.looseObject({ content: z.string().nullish() }), finish_reason: z.string().nullish() })),
  }),
])
export type EngineTranscriptEvent = z.infer<typeof EngineTranscriptEvent>

/** How long the sound was, in milliseconds; undefined where an engine does not tell. */
export const durationMsOf = (told: { duration?: number | null | undefined; usage?: object | null | undefined }): number | undefined => {
  if (typeof told.duration === 'number') return Math.round(told.duration * 1000)
  const usage = DurationUsage.safeParse(told.usage)
  return usage.success ? Math.round(usage.data.seconds * 1000) : undefined
}
