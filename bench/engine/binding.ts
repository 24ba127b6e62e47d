import { getLlama, LlamaLogLevel } from 'node-llama-cpp'

// What the binding makes of the same model by itself, without HTTP and without a server: so many sequences side by side, the same prompt and
// the same number of tokens. Prints tokens a second for each number of sequences given.
const [modelPath = '', tokens = '120', answers = '8', ...streams] = process.argv.slice(2)
const wanted = Number(tokens)

const llama = await getLlama({
  gpu: false,
  build: 'never',
  skipDownload: true,
  progressLogs: false,
  maxThreads: 1,
  logLevel: LlamaLogLevel.error,
})
const model = await llama.loadModel({ modelPath, gpuLayers: 0 })
const most = Math.max(...streams.map(Number))
const context = await model.createContext({ contextSize: 2048, sequences: most, threads: 1, batchSize: 512 })
const prompt = model.tokenize('Tell me a short story about a dog.')
const sequences = Array.from({ length: most }, () => context.getSequence())

const perSecond = async (parallel: number, wantedAnswers: number): Promise<number> => {
  let left = wantedAnswers
  let made = 0
  const startedAt = performance.now()
  await Promise.all(
    sequences.slice(0, parallel).map(async (sequence) => {
      while (left > 0) {
        left -= 1
        await sequence.clearHistory()
        let said = 0
        // With the end of the answer left out, so that it has the length that is wanted.
        for await (const _token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
          said += 1
          if (said === wanted) break
        }
        made += said
      }
    }),
  )
  return (made / (performance.now() - startedAt)) * 1000
}

await perSecond(2, 4)
for (const parallel of streams.map(Number)) {
  process.stdout.write(`${JSON.stringify({ parallel, perSecond: await perSecond(parallel, Number(answers)) })}\n`)
}
process.exit(0)
