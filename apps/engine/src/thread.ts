import { Worker, type WorkerOptions } from 'node:worker_threads'

/** The extension that modules of ours have: built, JavaScript; in development, the source itself. */
const FROM_SOURCE = import.meta.url.endsWith('.ts')

/**
 * Starts a thread with a module of ours, named as it is when built (`new URL('./x.js', import.meta.url)`). Node 20 does not load in threads
 * what `--import` loads in the process, so from source a thread begins by loading the loader.
 */
export const openThread = (module: URL, options: WorkerOptions): Worker => {
  if (!FROM_SOURCE) return new Worker(module, options)
  const source = JSON.stringify(module.href.replace(/\.js$/, '.ts'))
  const loader = JSON.stringify(import.meta.resolve('tsx/esm/api'))
  return new Worker(`import(${loader}).then((tsx) => { tsx.register(); return import(${source}) })`, { ...options, eval: true })
}
