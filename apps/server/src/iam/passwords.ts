import { randomBytes, scrypt, timingSafeEqual } from 'node:crypto'
import { networkOf } from '../kit/addresses.ts'
import type { Denial } from '../kit/denial.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { Secrets } from '../kit/secrets.ts'

// RFC 7914. Of the settings that OWASP names as equal this one takes 32 MB and three times the work; about a quarter of a second here.
const LOG_N = 15
const R = 8
const P = 3
const HASH_BYTES = 32
const SALT_BYTES = 16
/** A hash that asks for more was not written by us. */
const MAX_LOG_N = 18
const MAX_P = 8

/**
 * One at a time: hashing runs in the pool of four threads in which the journal waits for the disk, too, and a core should stay for
 * streams. What cannot soon have its turn is refused.
 */
const MAX_WAITING = 16
const MAX_WAITING_PER_ADDRESS = 4
const BUSY_RETRY_MS = 5_000

const MIN_CHARACTERS = 12
const MAX_CHARACTERS = 128
const MIN_DIFFERENT = 6
/** A name of fewer letters is in many good passwords by chance. */
const MIN_NAME_CHARACTERS = 4
/** What a password must not come down to, without its digits and signs and with those written out that stand for letters. */
const COMMON = new Set(
  `password passwords passphrase passwort motdepasse contrasena secret secrets letmein letmeinnow welcome welcomehome welcomeback changeme
   changemenow changeit default temporary administrator adminadmin superadmin superuser rootroot iloveyou trustnoone correcthorsebatterystaple
   thisismypassword mypassword newpassword onepassword passwordpassword princess sunshine football baseball basketball dragon monkey
   master shadow starwars whatever testtest testing parvis parvisparvis hunter qwerty qwertz azerty`.split(/\s+/),
)
const RUNS = [
  'abcdefghijklmnopqrstuvwxyz',
  '01234567890',
  'qwertyuiopasdfghjklzxcvbnm',
  'qwertzuiopasdfghjklyxcvbnm',
  'azertyuiopqsdfghjklmwxcvbn',
]
const LETTERS: Readonly<Record<string, string>> = { '0': 'o', '1': 'l', '3': 'e', '4': 'a', '5': 's', '7': 't', '@': 'a', $: 's', '!': 'i' }

const plain = (password: string): string => password.normalize('NFKC')

/** How many characters in it follow one another in an alphabet, a row of keys, or the digits. */
const inRuns = (text: string): number => {
  const follows = (a: string, b: string): boolean => RUNS.some((run) => run.includes(a + b) || run.includes(b + a))
  return Array.from(text).filter((letter, index, all) => index > 0 && (letter === all[index - 1] || follows(all[index - 1] ?? '', letter)))
    .length
}

/**
 * What is wrong with a password, in words for whoever chose it. Length is what counts (NIST SP 800-63B §3.1.1); no rule asks for
 * signs or capitals. `about`: names and addresses that must not be in it.
 */
export const weaknessOf = (password: string, about: readonly string[]): string | undefined => {
  const text = plain(password)
  const { length } = Array.from(text)
  if (length < MIN_CHARACTERS)
    return `a password has at least ${MIN_CHARACTERS} characters: three or four words that do not belong together are a good one`
  if (length > MAX_CHARACTERS) return `a password has at most ${MAX_CHARACTERS} characters`
  const lower = text.toLowerCase()
  if (new Set(lower).size < MIN_DIFFERENT) return `a password has at least ${MIN_DIFFERENT} different characters`
  const names = about.flatMap((name) => [name, ...name.split(/[@.\s_-]+/)]).map((name) => name.toLowerCase())
  const named = names.find((name) => name.length >= MIN_NAME_CHARACTERS && lower.includes(name))
  if (named !== undefined && length - named.length < MIN_CHARACTERS) return 'a password is not made of your name or address'
  if (inRuns(lower) > length / 2) return 'a password is not a row of letters, digits or keys'
  const bare = (value: string): string => value.replaceAll(/[^a-z]/g, '')
  const read = (value: string): string => bare(Array.from(value, (letter) => LETTERS[letter] ?? letter).join(''))
  const inner = lower.replaceAll(/^[^a-z]+|[^a-z]+$/g, '')
  if ([bare(lower), read(lower), read(inner)].some((word) => COMMON.has(word)))
    return 'this password is one of those that everybody tries first'
  return undefined
}

type Cost = { readonly logN: number; readonly r: number; readonly p: number }

const derive = (input: Buffer, salt: Buffer, { logN, r, p }: Cost): Promise<Buffer> =>
  new Promise((resolve, reject) => {
    const N = 2 ** logN
    // What scrypt needs is 128 N r; OpenSSL wants a little room above it.
    scrypt(input, salt, HASH_BYTES, { N, r, p, maxmem: 128 * N * r + 2 ** 20 * 4 }, (error, key) =>
      error === null ? resolve(key) : reject(error),
    )
  })

// The string format of the password hashing competition: the parameters stand with the hash, so that they can be raised.
const FORM = /^\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]{20,24})\$([A-Za-z0-9+/]{40,44})$/
const base64 = (bytes: Buffer): string => bytes.toString('base64').replace(/=+$/, '')
const write = (salt: Buffer, hash: Buffer): string => `$scrypt$ln=${LOG_N},r=${R},p=${P}$${base64(salt)}$${base64(hash)}`

const readHash = (text: string): { cost: Cost; salt: Buffer; hash: Buffer } => {
  const [, logN, r, p, salt = '', hash = ''] = FORM.exec(text) ?? []
  const cost = { logN: Number(logN), r: Number(r), p: Number(p) }
  if (!(cost.logN >= 10 && cost.logN <= MAX_LOG_N && cost.r === R && cost.p >= 1 && cost.p <= MAX_P))
    throw new Error('a stored password hash is not in the form that we write')
  return { cost, salt: Buffer.from(salt, 'base64'), hash: Buffer.from(hash, 'base64') }
}

/** Before the slow hash one under the master key: a stolen table alone cannot be searched at all. */
const peppered = (secrets: Secrets, password: string): Buffer => secrets.hashKey(`password ${plain(password)}`)

/** As it is stored. The server goes by `openPasswords`, which bounds the work; a command has nobody to share with. */
export const hashPassword = async (secrets: Secrets, password: string): Promise<string> => {
  const salt = randomBytes(SALT_BYTES)
  return write(salt, await derive(peppered(secrets, password), salt, { logN: LOG_N, r: R, p: P }))
}

const matchesHash = async (secrets: Secrets, password: string, stored: string): Promise<boolean> => {
  const { cost, salt, hash } = readHash(stored)
  return timingSafeEqual(await derive(peppered(secrets, password), salt, cost), hash)
}

/** Takes as long as a hash that we would write, and belongs to nobody: the answer to a name that nobody has must not come sooner. */
const NOBODY = write(Buffer.alloc(SALT_BYTES), Buffer.alloc(HASH_BYTES))

export type Passwords = {
  /** Why not, when there is no place in the queue: to be asked before anything else is done for an address. */
  refusal(ip: string): Denial | undefined
  /** `ip`: on whose behalf; an address has only so many places in the queue. */
  hash(password: string, ip: string): Promise<Outcome<string, Denial>>
  /** Which of the hashes the password has; `undefined` among them takes as long as a hash and never matches. */
  matching(password: string, hashes: readonly (string | undefined)[], ip: string): Promise<Outcome<readonly boolean[], Denial>>
}

export const openPasswords = (secrets: Secrets): Passwords => {
  let last: Promise<unknown> = Promise.resolve()
  let waiting = 0
  const places = new Map<string, number>()

  const refusal = (ip: string): Denial | undefined =>
    waiting < MAX_WAITING && (places.get(networkOf(ip)) ?? 0) < MAX_WAITING_PER_ADDRESS
      ? undefined
      : { type: 'too_many_requests', help_message: 'Too many people sign in at once. Try again in a moment.', retryAfterMs: BUSY_RETRY_MS }

  const inTurn = async <T>(ip: string, work: () => Promise<T>): Promise<Outcome<T, Denial>> => {
    const refused = refusal(ip)
    if (refused !== undefined) return no(refused)
    waiting += 1
    const network = networkOf(ip)
    places.set(network, (places.get(network) ?? 0) + 1)
    const turn = last.then(work)
    last = turn.catch(() => undefined)
    try {
      return yes(await turn)
    } finally {
      waiting -= 1
      const left = (places.get(network) ?? 1) - 1
      if (left === 0) places.delete(network)
      else places.set(network, left)
    }
  }

  return {
    refusal,
    hash: (password, ip) => inTurn(ip, () => hashPassword(secrets, password)),
    matching: (password, hashes, ip) =>
      inTurn(ip, async () => {
        const found: boolean[] = []
        for (const hash of hashes) found.push((await matchesHash(secrets, password, hash ?? NOBODY)) && hash !== undefined)
        return found
      }),
  }
}
