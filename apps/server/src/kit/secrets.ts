import { createCipheriv, createDecipheriv, createHmac, hkdfSync, randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { codeOf, makeDataDir, makeFileOnce } from './data-dir.ts'

/** What is done with the installation's master key. The key itself stays in here. */
export type Secrets = {
  /** HMAC-SHA256. Secret keys have 122 random bits, so a quick hash is enough; the master key makes a stolen table useless. */
  hashKey(secretKey: string): Buffer
  /** The same hash, one character per byte: what each request is looked up by. Without a Buffer between it takes three quarters of the time. */
  hashKeyToText(secretKey: string): string
  /** AES-256-GCM with a random nonce: what comes out can be stored, and only this installation reads it. */
  seal(plain: string): Buffer
  /** Throws when the bytes were changed or sealed under another master key. */
  unseal(sealed: Buffer): string
  /** Tells two master keys apart and gives neither away. */
  readonly fingerprint: string
}

const KEY_BYTES = 32
const NONCE_BYTES = 12 // NIST SP 800-38D §5.2.1.1: the length GCM is made for
const TAG_BYTES = 16
const SEAL_VERSION = 1 // the first byte of what is sealed, so that a later way of sealing can be told apart
const HEX_KEY = /^[0-9a-f]{64}$/i

const keyFile = (dataDir: string): string => join(dataDir, 'master.key')

const readKey = async (dataDir: string): Promise<Buffer> => {
  const file = keyFile(dataDir)
  const text = await readFile(file, 'utf8').catch(async (error: unknown) => {
    if (codeOf(error) !== 'ENOENT') throw error
    await makeDataDir(dataDir)
    await makeFileOnce(file, `${randomBytes(KEY_BYTES).toString('hex')}\n`)
    return readFile(file, 'utf8')
  })
  if (!HEX_KEY.test(text.trim()))
    throw new Error(`${file} must hold 64 hexadecimal digits and does not. Restore it from a backup; keys cannot be checked without it.`)
  return Buffer.from(text.trim(), 'hex')
}

const fromKey = (key: Buffer): Secrets => {
  // One key per purpose (RFC 5869), so that no answer of one tells anything about another.
  const derive = (purpose: string): Buffer => Buffer.from(hkdfSync('sha256', key, Buffer.alloc(0), `parvis ${purpose}`, KEY_BYTES))
  const hashing = derive('hash keys')
  const sealing = derive('seal')
  return {
    hashKey: (secretKey) => createHmac('sha256', hashing).update(secretKey).digest(),
    hashKeyToText: (secretKey) => createHmac('sha256', hashing).update(secretKey).digest('binary'),
    seal: (plain) => {
      const nonce = randomBytes(NONCE_BYTES)
      const cipher = createCipheriv('aes-256-gcm', sealing, nonce, { authTagLength: TAG_BYTES })
      const body = Buffer.concat([cipher.update(plain, 'utf8'), cipher.final()])
      return Buffer.concat([Buffer.of(SEAL_VERSION), nonce, cipher.getAuthTag(), body])
    },
    unseal: (sealed) => {
      try {
        if (sealed.length < 1 + NONCE_BYTES + TAG_BYTES || sealed[0] !== SEAL_VERSION) throw new Error('not in the form that seal writes')
        const nonce = sealed.subarray(1, 1 + NONCE_BYTES)
        const tag = sealed.subarray(1 + NONCE_BYTES, 1 + NONCE_BYTES + TAG_BYTES)
        const decipher = createDecipheriv('aes-256-gcm', sealing, nonce, { authTagLength: TAG_BYTES }).setAuthTag(tag)
        return Buffer.concat([decipher.update(sealed.subarray(1 + NONCE_BYTES + TAG_BYTES)), decipher.final()]).toString('utf8')
      } catch (cause) {
        throw new Error('A stored secret cannot be read: it was changed, or the master key is another one.', { cause })
      }
    },
    fingerprint: derive('fingerprint').toString('hex').slice(0, 32),
  }
}

/** The master key is the setting when given (several machines share one), else a file that the first start makes. */
export const openSecrets = async (options: { dataDir: string; masterKey: string | undefined }): Promise<Secrets> => {
  if (options.masterKey === undefined) return fromKey(await readKey(options.dataDir))
  if (!HEX_KEY.test(options.masterKey)) throw new Error('PARVIS_MASTER_KEY must be 64 hexadecimal digits.')
  return fromKey(Buffer.from(options.masterKey, 'hex'))
}
