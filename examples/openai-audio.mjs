// Speech to text with OpenAI's SDK: text, subtitles, and a text that comes while it is written down.
// PARVIS_URL=http://127.0.0.1:8080 PARVIS_API_KEY=… node examples/openai-audio.mjs [recording.mp3]
import { createReadStream } from 'node:fs'
import { fileURLToPath } from 'node:url'
import OpenAI from 'openai'

const client = new OpenAI({ baseURL: `${process.env.PARVIS_URL ?? 'http://127.0.0.1:8080'}/v1`, apiKey: process.env.PARVIS_API_KEY })
const model = process.env.PARVIS_SPEECH_MODEL ?? 'tiny-whisper'
const path = process.argv[2] ?? fileURLToPath(new URL('../apps/engine/test-clips/02-two-sentences.mp3', import.meta.url))
// A file is read anew each time; flac, mp3, ogg and wav are understood.
const file = () => createReadStream(path)

const { text, usage } = await client.audio.transcriptions.create({ model, file: file(), language: 'en' })
console.log('text:', text, `(${usage.seconds} s)`)

const subtitles = await client.audio.transcriptions.create({ model, file: file(), response_format: 'srt' })
console.log(`subtitles:\n${subtitles.trim()}`)

const stream = await client.audio.transcriptions.create({ model, file: file(), stream: true })
process.stdout.write('streamed: ')
for await (const event of stream) if (event.type === 'transcript.text.delta') process.stdout.write(event.delta)
console.log()
