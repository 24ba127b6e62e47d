import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { openSecrets } from './secrets.ts'

let dataDir: string
beforeAll(async () => {
  dataDir = await mkdtemp(join(tmpdir(), 'parvis-secrets-'))
})
afterAll(() => rm(dataDir, { recursive: true, force: true }))

const masterKey = 'ab'.repeat(32)

test('the first start makes a key that only its owner may read, and the second reads the same', async () => {
  const first = await openSecrets({ dataDir, masterKey: undefined })
  const second = await openSecrets({ dataDir, masterKey: undefined })
  expect(second.fingerprint).toBe(first.fingerprint)
  expect(second.hashKey('a')).toEqual(first.hashKey('a'))
  expect(second.hashKeyToText('a')).toBe(first.hashKey('a').toString('latin1'))
  expect(second.unseal(first.seal('token'))).toBe('token')
  expect((await stat(join(dataDir, 'master.key'))).mode & 0o777).toBe(0o600)
})

test('processes that start at once end up with one key', async () => {
  const fresh = join(dataDir, 'fresh')
  const all = await Promise.all(Array.from({ length: 8 }, () => openSecrets({ dataDir: fresh, masterKey: undefined })))
  expect(new Set(all.map(({ fingerprint }) => fingerprint)).size).toBe(1)
})

test('a broken key file stops the start instead of being replaced', async () => {
  const broken = await mkdtemp(join(tmpdir(), 'parvis-secrets-'))
  try {
    await writeFile(join(broken, 'master.key'), 'abc\n')
    await expect(openSecrets({ dataDir: broken, masterKey: undefined })).rejects.toThrow(/master\.key must hold 64 hexadecimal digits/)
    expect(await readFile(join(broken, 'master.key'), 'utf8')).toBe('abc\n')
  } finally {
    await rm(broken, { recursive: true })
  }
})

test('the setting is used instead of a file, and is checked', async () => {
  const given = await openSecrets({ dataDir: '/nowhere', masterKey })
  expect(given.fingerprint).not.toContain(masterKey.slice(0, 8))
  await expect(openSecrets({ dataDir: '/nowhere', masterKey: 'ab' })).rejects.toThrow('PARVIS_MASTER_KEY must be 64 hexadecimal digits')
})

test('what is sealed comes out as it was, and looks different every time', async () => {
  const secrets = await openSecrets({ dataDir, masterKey })
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), (text) => {
      const sealed = secrets.seal(text)
      expect(secrets.unseal(sealed)).toBe(Buffer.from(text).toString())
      expect(sealed.equals(secrets.seal(text))).toBe(false)
    }),
    { numRuns: 50 },
  )
})

test('one changed bit anywhere, a cut, or another master key is noticed', async () => {
  const secrets = await openSecrets({ dataDir, masterKey })
  const sealed = secrets.seal('hf_token')
  for (let bit = 0; bit < sealed.length * 8; bit += 1) {
    const changed = Buffer.from(sealed)
    changed[bit >> 3] = (changed[bit >> 3] ?? 0) ^ (1 << (bit & 7))
    expect(() => secrets.unseal(changed)).toThrow('A stored secret cannot be read')
  }
  for (let length = 0; length < sealed.length; length += 1)
    expect(() => secrets.unseal(sealed.subarray(0, length))).toThrow('A stored secret cannot be read')
  const other = await openSecrets({ dataDir, masterKey: 'cd'.repeat(32) })
  expect(() => other.unseal(sealed)).toThrow('the master key is another one')
  expect(other.hashKey('a')).not.toEqual(secrets.hashKey('a'))
  expect(other.fingerprint).not.toBe(secrets.fingerprint)
})
