import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative, resolve, sep } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'

const SRC = fileURLToPath(new URL('../src', import.meta.url))
const ROOT = resolve(SRC, '../../..')

/** Who may look at whom. Everything may look at `@parvis/wire`; `start`, `main` and `cli` may look at everything. */
const MAY_IMPORT: Record<string, readonly string[]> = {
  kit: [],
  reference: ['kit'],
  audit: ['kit'],
  engines: ['kit', 'audit'],
  iam: ['kit', 'audit'],
  catalog: ['kit', 'audit'],
  quota: ['kit', 'audit'],
  usage: ['kit', 'audit'],
  gateways: ['kit', 'engines', 'usage'],
  inference: ['kit', 'iam', 'catalog', 'quota', 'engines', 'usage'],
  billing: ['kit', 'iam', 'catalog', 'usage', 'audit'],
  cockpit: ['kit', 'audit'],
  deployments: ['kit', 'iam', 'catalog', 'engines', 'usage', 'audit'],
}

/** Workspaces that may look at no part of another but these. */
const WORKSPACES: Record<string, readonly string[]> = {
  'packages/wire': [],
  'packages/client': ['@parvis/wire'],
  'apps/engine': ['@parvis/wire'],
  'apps/server': ['@parvis/wire'],
}

const files = (folder: string): string[] =>
  readdirSync(folder, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.ts') && !entry.name.endsWith('.test.ts'))
    .map((entry) => join(entry.parentPath, entry.name))
    .filter((file) => !file.includes(`${sep}node_modules${sep}`) && !file.includes(`${sep}dist${sep}`))

/** Every `import … from`, `export … from` and `import('…')`, type imports included: a shape is a dependency too. */
const imports = (file: string): string[] =>
  [...readFileSync(file, 'utf8').matchAll(/(?:\bfrom\s+|\bimport\s*\(\s*|^import\s+)['"]([^'"]+)['"]/gm)].map((match) => match[1] ?? '')

const roomOf = (file: string): string => relative(SRC, file).split(sep)[0] ?? ''

const importedRooms = (room: string): string[] => [
  ...new Set(
    files(join(SRC, room)).flatMap((file) =>
      imports(file)
        .filter((specifier) => specifier.startsWith('.'))
        .map((specifier) => roomOf(resolve(dirname(file), specifier))),
    ),
  ),
]

for (const [room, allowed] of Object.entries(MAY_IMPORT)) {
  test(`${room} looks only at ${allowed.join(', ') || 'itself'}`, () => {
    expect(files(join(SRC, room)).length).toBeGreaterThan(0)
    expect(importedRooms(room).filter((to) => to !== room && !allowed.includes(to))).toEqual([])
  })
}

test('every room of the server has its row in the table', () => {
  const rooms = readdirSync(SRC, { withFileTypes: true }).filter((entry) => entry.isDirectory())
  expect(rooms.map((entry) => entry.name).filter((name) => name !== 'cli' && !(name in MAY_IMPORT))).toEqual([])
})

for (const [workspace, allowed] of Object.entries(WORKSPACES)) {
  test(`${workspace} looks at no workspace but ${allowed.join(', ') || 'itself'}`, () => {
    const seen = files(join(ROOT, workspace, 'src'))
      .flatMap(imports)
      .filter((specifier) => specifier.startsWith('@parvis/'))
    const foreign = seen.filter((specifier) => !allowed.some((name) => specifier.startsWith(`${name}/`)))
    expect([...new Set(foreign)]).toEqual([])
  })
}

test('only config reads the environment, and only the clock knows what time it is', () => {
  const readers = (pattern: RegExp): string[] =>
    files(SRC)
      .filter((file) => pattern.test(readFileSync(file, 'utf8')))
      .map((file) => relative(SRC, file))
  // The greeting prints a program that reads the environment; it does not read it itself.
  const allowed = ['config.ts', 'main.ts', join('cli', 'greeting.ts')]
  expect(readers(/process\.env\b/).filter((file) => !allowed.includes(file))).toEqual([])
  expect(readers(/\bDate\.now\(|\bnew Date\(\)/)).toEqual([join('kit', 'clock.ts')])
})
