import type { EngineTranscript, TranscriptFormat, TranscriptSegment } from '@parvis/wire/openai/transcription'

/** What clients know of a duration: whole seconds, begun ones counted (data-plane.md 11.4). */
export const toUsage = (durationMs: number): { type: 'duration'; seconds: number } => ({
  type: 'duration',
  seconds: Math.ceil(durationMs / 1000),
})

/** `00:01:02,345`; the two kinds of subtitles differ in what stands before the milliseconds. */
const clockTime = (seconds: number, mark: ',' | '.'): string => {
  const ms = Math.round(seconds * 1000)
  const two = (value: number): string => String(Math.floor(value)).padStart(2, '0')
  return `${two(ms / 3_600_000)}:${two((ms / 60_000) % 60)}:${two((ms / 1000) % 60)}${mark}${String(ms % 1000).padStart(3, '0')}`
}

/** A blank line would end a subtitle, and an arrow would be taken for its times. */
const cueText = (text: string): string =>
  text
    .trim()
    .replaceAll(/\s*\n\s*/g, ' ')
    .replaceAll('-->', '->')

const cues = (transcript: EngineTranscript, durationMs: number): readonly TranscriptSegment[] => {
  if (transcript.segments) return transcript.segments
  return transcript.text.trim() === '' ? [] : [{ start: 0, end: durationMs / 1000, text: transcript.text }]
}

const toSrt = (segments: readonly TranscriptSegment[]): string =>
  segments
    .map(({ start, end, text }, at) => `${at + 1}\n${clockTime(start, ',')} --> ${clockTime(end, ',')}\n${cueText(text)}\n\n`)
    .join('')

const toVtt = (segments: readonly TranscriptSegment[]): string =>
  `WEBVTT\n\n${segments.map(({ start, end, text }) => `${clockTime(start, '.')} --> ${clockTime(end, '.')}\n${cueText(text)}\n\n`).join('')}`

const PLAIN = 'text/plain; charset=utf-8'

/** What an engine has written down, in the format that was asked for: the one place where formats are made. */
export const renderTranscript = (
  transcript: EngineTranscript,
  durationMs: number | undefined,
  wanted: { readonly format: TranscriptFormat; readonly segments: boolean },
): { readonly contentType: string; readonly text: string } => {
  const usage = durationMs === undefined ? {} : { usage: toUsage(durationMs) }
  switch (wanted.format) {
    case 'json':
      return { contentType: 'application/json', text: JSON.stringify({ text: transcript.text, ...usage }) }
    case 'verbose_json': {
      const { segments, words } = transcript
      return {
        contentType: 'application/json',
        text: JSON.stringify({
          task: 'transcribe',
          language: transcript.language ?? null,
          duration: durationMs === undefined ? null : durationMs / 1000,
          text: transcript.text,
          ...(wanted.segments ? { segments: segments ?? [] } : {}),
          ...(words ? { words } : {}),
          ...usage,
        }),
      }
    }
    case 'text':
      return { contentType: PLAIN, text: `${transcript.text}\n` }
    case 'srt':
      return { contentType: PLAIN, text: toSrt(cues(transcript, durationMs ?? 0)) }
    case 'vtt':
      return { contentType: PLAIN, text: toVtt(cues(transcript, durationMs ?? 0)) }
  }
}
