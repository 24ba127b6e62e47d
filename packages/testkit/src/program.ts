import { existsSync, readdirSync, statSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const ROOT = fileURLToPath(new URL('../../../', import.meta.url))
const WORKSPACES = ['packages/wire', 'apps/engine', 'apps/server']

const newest = (folder: string): number =>
  readdirSync(folder, { withFileTypes: true }).reduce((latest, entry) => {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) return Math.max(latest, newest(path))
    return entry.name.endsWith('.ts') ? Math.max(latest, statSync(path).mtimeMs) : latest
  }, 0)

/** Whether what is built is what the source says; `npm test` builds before it tests. */
const isBuilt = (): boolean =>
  WORKSPACES.every((workspace) => {
    const info = join(ROOT, workspace, 'dist', '.tsbuildinfo')
    return existsSync(info) && statSync(info).mtimeMs >= newest(join(ROOT, workspace, 'src'))
  })

/** What Node needs to run our source as it stands. */
export const FROM_SOURCE: readonly string[] = [
  '--import',
  pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href,
  '--conditions=@parvis/source',
]

const PROGRAMS = {
  engine: { source: 'apps/engine/src/main.ts', built: 'apps/engine/dist/main.js' },
  server: { source: 'apps/server/src/main.ts', built: 'apps/server/bin/parvis.mjs' },
}

/** How a test starts one of our programs: as it is shipped where it is built, and otherwise from source, which costs two seconds of a processor more. */
export const programOf = (name: keyof typeof PROGRAMS): { readonly path: string; readonly execArgv: readonly string[] } => {
  const { source, built } = PROGRAMS[name]
  return isBuilt() ? { path: join(ROOT, built), execArgv: [] } : { path: join(ROOT, source), execArgv: FROM_SOURCE }
}
