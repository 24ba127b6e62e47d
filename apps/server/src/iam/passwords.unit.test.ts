import { randomBytes } from 'node:crypto'
import { tmpdir } from 'node:os'
import { beforeAll, describe, expect, test } from 'vitest'
import { openSecrets, type Secrets } from '../kit/secrets.ts'
import { hashPassword, openPasswords, weaknessOf } from './passwords.ts'

let secrets: Secrets
let other: Secrets
beforeAll(async () => {
  const make = () => openSecrets({ dataDir: tmpdir(), masterKey: randomBytes(32).toString('hex') })
  secrets = await make()
  other = await make()
})

const GOOD = 'four words of no meaning'

test('a hash tells the right password from any other, says how it was made, and is never made twice', async () => {
  const [first, second] = [await hashPassword(secrets, GOOD), await hashPassword(secrets, GOOD)]
  expect(first).toMatch(/^\$scrypt\$ln=15,r=8,p=3\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$/)
  expect(first).not.toBe(second)
  const passwords = openPasswords(secrets)
  const matching = async (password: string, ...hashes: (string | undefined)[]) => {
    const found = await passwords.matching(password, hashes, '192.0.2.1')
    if (!found.ok) throw new Error('no turn')
    return found.value
  }
  expect(await matching(GOOD, first, undefined)).toEqual([true, false])
  expect(await matching(`${GOOD} `, first)).toEqual([false])
  // The same letters, written in two ways that look the same.
  const composed = await hashPassword(secrets, 'caf\u00e9 au lait pour deux')
  expect(await matching('cafe\u0301 au lait pour deux', composed)).toEqual([true])
})

test('a hash that was taken away with its table opens nothing without the master key', async () => {
  const stolen = await hashPassword(secrets, GOOD)
  expect(await openPasswords(other).matching(GOOD, [stolen], '')).toEqual({ ok: true, value: [false] })
})

test('the parameters of a hash are its own, within bounds', async () => {
  const cheap = await hashPassword(secrets, GOOD)
  const dear = cheap.replace('ln=15', 'ln=30')
  await expect(openPasswords(secrets).matching(GOOD, [dear], '')).rejects.toThrow('not in the form')
  await expect(openPasswords(secrets).matching(GOOD, ['plain text'], '')).rejects.toThrow('not in the form')
  const weaker = cheap.replace('p=3', 'p=1')
  expect(await openPasswords(secrets).matching(GOOD, [weaker], '')).toEqual({ ok: true, value: [false] })
})

test('what cannot soon have its turn is refused, and an address, or a network of IPv6, has only so many places', async () => {
  const passwords = openPasswords(secrets)
  const one = Array.from({ length: 6 }, (_, index) => passwords.hash(GOOD, `2001:db8:0:7::${index}`))
  const many = Array.from({ length: 20 }, (_, index) => passwords.hash(GOOD, `198.51.100.${index}`))
  const refused = await Promise.all([one[4], one[5], many[12], many[19]])
  for (const outcome of refused) expect(outcome).toMatchObject({ ok: false, refusal: { type: 'too_many_requests' } })
  const done = await Promise.all([...one, ...many])
  expect(done.filter((outcome) => outcome?.ok === true)).toHaveLength(16)
  expect(await passwords.hash(GOOD, '192.0.2.1')).toMatchObject({ ok: true })
}, 120_000)

describe('a password is refused in words', () => {
  test.each([
    ['short', 'at least 12'],
    ['x'.repeat(12), 'different characters'],
    ['ab'.repeat(50), 'different characters'],
    [`${GOOD} `.repeat(8), 'at most 128'],
    ['123456789012', 'row'],
    ['abcdefghijklm', 'row'],
    ['qwertyuiopas', 'row'],
    ['zyxwvutsrqponm', 'row'],
    ['P@ssw0rd12345!', 'everybody tries'],
    ['Passw0rd!!!!2026', 'everybody tries'],
    ['Welcome123456#7', 'everybody tries'],
    ['letmein-2026-!!', 'everybody tries'],
    ['jane.doe-12345', 'name or address'],
    ['example4711-x', 'name or address'],
  ])('%s', (password, words) => {
    expect(weaknessOf(password, ['jane.doe', 'jane.doe@example.com'])).toContain(words)
  })
})

test.each([
  [GOOD],
  ['Tr0ub4dor&3 by the sea'],
  ['ein langer Satz über Käse'],
  ['k7#mQz!p2Lw9'],
  ['パスワードは長いほうが良いのです'],
  ['jane sings to the moon'],
])('a good one is taken: %s', (password) => {
  expect(weaknessOf(password, ['jane', 'jane@example.com'])).toBeUndefined()
})
