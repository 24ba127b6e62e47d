import { getLlama, LlamaLogLevel, type Token } from 'node-llama-cpp'

// What the binding makes of the same model by itself, without HTTP and without a server. It lives as long as the engine beside it and is told
// by its parent what to do: so many sequences side by side, these prompts one after the other, so many tokens for each. It answers with tokens a second.
export type Task = { readonly parallel: number; readonly prompts: readonly (readonly number[])[]; readonly tokens: number }
export type Done = { readonly perSecond: number }

const [modelPath = '', contextTokens = '', sequences = ''] = process.argv.slice(2)

const llama = await getLlama({
  gpu: false,
  build: 'never',
  skipDownload: true,
  progressLogs: false,
  maxThreads: 1,
  logLevel: LlamaLogLevel.error,
})
const model = await llama.loadModel({ modelPath, gpuLayers: 0 })
const context = await model.createContext({
  contextSize: Number(contextTokens),
  sequences: Number(sequences),
  threads: 1,
  batchSize: 512,
  flashAttention: false, // as the engine has it on a CPU
})
const all = Array.from({ length: Number(sequences) }, () => context.getSequence())

const run = async ({ parallel, prompts, tokens }: Task): Promise<Done> => {
  let next = 0
  let made = 0
  const startedAtMs = performance.now()
  await Promise.all(
    all.slice(0, parallel).map(async (sequence) => {
      for (let prompt = prompts[next++]; prompt !== undefined; prompt = prompts[next++]) {
        // What the sequence knows of the prompt's beginning is kept, as the engine does it; the last token is computed always.
        await sequence.adaptStateToTokens(prompt.slice(0, -1) as Token[], false)
        let said = 0
        // With the end of the answer left out, so that it has the length that is wanted.
        const answer = sequence.evaluate(prompt.slice(sequence.nextTokenIndex) as Token[], { temperature: 0, yieldEogToken: true })
        for await (const _token of answer) {
          said += 1
          if (said === tokens) break
        }
        made += said
      }
    }),
  )
  if (made !== prompts.length * tokens) throw new Error(`${made} tokens for ${prompts.length} answers of ${tokens}`)
  return { perSecond: (made / (performance.now() - startedAtMs)) * 1000 }
}

process.once('disconnect', () => process.exit(0))
const answer = async (task: Task): Promise<void> => {
  process.send?.(await run(task))
}
process.on('message', (task: Task) => void answer(task))
process.send?.('ready')
