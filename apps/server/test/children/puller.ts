import { pullModel } from '../../src/catalog/weights/pull.ts'
import { systemClock } from '../../src/kit/clock.ts'

// A process that pulls and says how many bytes it has, so that a test can kill it in the middle.
const [, , endpoint = '', reference = '', builtin = '', pulled = ''] = process.argv

await pullModel({
  endpoint,
  reference,
  token: undefined,
  weightsDirs: { builtin, pulled },
  clock: systemClock,
  signal: new AbortController().signal,
  onProgress: ({ receivedBytes }) => process.stdout.write(`${receivedBytes}\n`),
})
