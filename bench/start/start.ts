import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { endsWithUs, familyOf, freePort, median, type Row, residentMb, until } from '../measure.ts'

const PARVIS = fileURLToPath(new URL('../../apps/server/bin/parvis.mjs', import.meta.url))

/** What runs there, in a word: the server, an engine, the database. */
const kindOf = (pid: number): string => {
  const said = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ')
  if (said.includes('parvis.mjs')) return 'server'
  const model = /--name (\S+)/.exec(said)?.[1]
  if (model !== undefined) return `engine ${model}`
  return said.includes('postgres') ? 'database, all its processes' : said.trim().slice(0, 40)
}

/** From the command to ready, with a data directory that has been used before, and what each process weighs then; the models of the repository run. */
export const benchStart = async (quick: boolean): Promise<Row[]> => {
  const dataDir = mkdtempSync(join(tmpdir(), 'parvis-bench-start-'))
  const port = await freePort()
  const once = async (): Promise<{ tookMs: number; weights: Map<string, number> }> => {
    const startedAt = performance.now()
    const child = endsWithUs(
      spawn(process.execPath, [PARVIS, 'serve'], {
        env: { ...process.env, PARVIS_DATA_DIR: dataDir, PARVIS_PORT: String(port), PARVIS_LOG_LEVEL: 'error' },
        stdio: ['ignore', 'ignore', 'inherit'],
      }),
    )
    const ended = new Promise<void>((resolve) => child.on('exit', () => resolve()))
    try {
      await until('the server is ready', async () => (await fetch(`http://127.0.0.1:${port}/ready`)).ok)
      const tookMs = performance.now() - startedAt
      const family = (): string[] => familyOf(child.pid ?? 0).map(kindOf)
      await until('the engine of tiny-chat runs', async () => family().includes('engine tiny-chat'))
      const weights = new Map<string, number>()
      for (const pid of familyOf(child.pid ?? 0)) weights.set(kindOf(pid), (weights.get(kindOf(pid)) ?? 0) + residentMb(pid))
      return { tookMs, weights }
    } finally {
      child.kill('SIGTERM')
      await ended
    }
  }
  try {
    const first = await once()
    const again: Awaited<ReturnType<typeof once>>[] = []
    for (let round = 0; round < (quick ? 1 : 5); round += 1) again.push(await once())
    const weights = again.at(-1)?.weights ?? new Map<string, number>()
    return [
      {
        what: 'start to ready, warm data directory',
        value: median(again.map(({ tookMs }) => tookMs)) / 1000,
        unit: 's',
        beside: `held < 5 s; the first start of all ${(first.tookMs / 1000).toFixed(1)} s`,
        cliff: { above: 60, why: 'a restart is a gap in service' },
      },
      ...[...weights].map(([kind, mb]): Row => ({ what: `memory at idle: ${kind}`, value: mb, unit: 'MiB', beside: 'resident' })),
    ]
  } finally {
    rmSync(dataDir, { recursive: true, force: true })
  }
}
