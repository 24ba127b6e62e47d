import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { SETTINGS } from '../src/config.ts'

const README = readFileSync(new URL('../../../README.md', import.meta.url), 'utf8')

const TABLE = [
  '| environment | parvis.yaml | default | what |',
  '|---|---|---|---|',
  ...SETTINGS.map((setting) => `| \`${setting.env}\` | \`${setting.yaml}\` | ${setting.default} | ${setting.what} |`),
].join('\n')

test('the README lists every setting there is, as it is', () => {
  expect(README).toContain(TABLE)
})
