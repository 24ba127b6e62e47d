import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, expect, test } from 'vitest'

const SCRIPT = fileURLToPath(new URL('complete-lock.mjs', import.meta.url))
const LOCK = readFileSync(new URL('../package-lock.json', import.meta.url), 'utf8')
const folder = mkdtempSync(join(tmpdir(), 'parvis-lock-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

type Lock = { packages: Record<string, { resolved?: string; link?: boolean; os?: string[] }> }
const packagesOf = (text: string) => Object.entries((JSON.parse(text) as Lock).packages)

const complete = (...args: string[]) => {
  const { status, stderr } = spawnSync(process.execPath, [SCRIPT, ...args], { encoding: 'utf8' })
  return { status, stderr }
}

test('the lock file has every package that it names, and no registry', () => {
  expect(complete('--check')).toEqual({ status: 0, stderr: '' })
  expect(packagesOf(LOCK).filter(([, { resolved, link }]) => resolved !== undefined && link !== true)).toEqual([])
})

test('builds for other systems that npm left out are added, and only looked for when asked to', () => {
  const file = join(folder, 'package-lock.json')
  const lock = JSON.parse(LOCK) as Lock
  const left = packagesOf(LOCK).filter(([path, { os }]) => !/\/(@oxlint|@biomejs)\//.test(path) || os === undefined || os[0] === 'linux')
  const without = JSON.stringify({ ...lock, packages: Object.fromEntries(left) })
  writeFileSync(file, without)
  expect(complete('--check', file)).toMatchObject({ status: 1, stderr: expect.stringContaining('run node scripts/complete-lock.mjs') })
  expect(readFileSync(file, 'utf8')).toBe(without)
  expect(complete(file)).toEqual({ status: 0, stderr: '' })
  expect(readFileSync(file, 'utf8')).toBe(LOCK)
})
