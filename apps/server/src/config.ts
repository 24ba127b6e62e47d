import { readFileSync } from 'node:fs'
import { isIPv4 } from 'node:net'
import { availableParallelism, homedir, totalmem } from 'node:os'
import { join, resolve } from 'node:path'
import { parseDocument } from 'yaml'
import { z } from 'zod'
import { isRange } from './kit/addresses.ts'
import { MAXIMA, type Maxima } from './kit/maxima.ts'

export type Environment = Readonly<Record<string, string | undefined>>

/** What the machine says about itself; a test says something else. */
export type Machine = { readonly root: boolean; readonly home: string; readonly cores: number; readonly memoryMb: number }

// A container's limit is what counts, where there is one; without one Node answers with a number larger than any machine.
const memoryBytes = (): number => Math.min(totalmem(), process.constrainedMemory() || Number.POSITIVE_INFINITY)

const thisMachine = (): Machine => ({
  root: process.getuid?.() === 0,
  home: homedir(),
  cores: availableParallelism(),
  memoryMb: Math.floor(memoryBytes() / 2 ** 20),
})

// A setting arrives as text from the environment and as a number or a boolean from the file; both mean the same.
const whole = (least: number, most: number) =>
  z
    .union(
      [
        z.int(),
        z
          .string()
          .regex(/^\d{1,15}$/)
          .transform(Number),
      ],
      { error: 'must be a whole number' },
    )
    .refine((value) => value >= least && value <= most, { error: `must be between ${least} and ${most}` })
const flag = z.union([z.boolean(), z.enum(['true', 'false']).transform((text) => text === 'true')], { error: 'must be true or false' })
const text = z.string({ error: 'must be text' }).min(1, { error: 'must not be empty' })
const webAddress = text.refine((value) => URL.canParse(value) && /^https?:$/.test(new URL(value).protocol), {
  error: 'must be an http:// or https:// address',
})
/** Text, since 19.6 has no exact double; a number of the file is written out as it stands there. */
const percent = z.union([z.number().transform(String), z.string()]).refine((value) => /^\d{1,2}(\.\d{1,2})?$/.test(value), {
  error: 'must be a percentage below 100 with at most two digits behind the point',
})
const oneOf = <const T extends readonly string[]>(values: T) => z.enum(values, { error: `must be one of ${values.join(', ')}` })

const listed = (what: string) =>
  z.union([z.array(z.string()), z.string().transform((value) => value.split(',').map((item) => item.trim()))], {
    error: `must be a list of ${what}`,
  })
const ranges = listed('ranges').refine((values) => values.every(isRange), {
  error: 'must be ranges like 10.0.0.0/8 or fd00::/8, with commas between them',
})
const isOrigin = (value: string): boolean =>
  URL.canParse(value) && /^https?:$/.test(new URL(value).protocol) && new URL(value).origin === value
const DOMAIN = /^([a-z0-9-]{1,63}\.)+[a-z]{2,63}$/

/** More keys than this a gateway should not have to know of one organization (iam/iam.ts). */
const MOST_OF_EACH = 100_000
const maximum = whole(1, MOST_OF_EACH)
const isMaximum = ([name, value, ...more]: readonly unknown[]): boolean =>
  typeof name === 'string' && Object.hasOwn(MAXIMA, name) && maximum.safeParse(value).success && more.length === 0
/** Pairs of a name and a number, as text or as a map of the file; what is not named keeps its default. */
const maxima = z
  .union(
    [
      z.record(z.string(), z.unknown()).transform((map): unknown[][] => Object.entries(map)),
      z.string().transform((value): unknown[][] => value.split(',').map((pair) => pair.split('=').map((part) => part.trim()))),
    ],
    { error: 'must be text or a map, like IamUsers=500,IamApiKeys=2000' },
  )
  .refine((pairs) => pairs.every(isMaximum) && new Set(pairs.map(([name]) => name)).size === pairs.length, {
    error: `must be like IamUsers=500,IamApiKeys=2000: each of ${Object.keys(MAXIMA).join(', ')} at most once, with a whole number from 1 to ${MOST_OF_EACH}`,
  })
  .transform((pairs): Maxima => ({ ...MAXIMA, ...Object.fromEntries(pairs.map(([name, value]) => [name, Number(value)])) }))

/** The engine's share: a quarter of the memory for each model's process, so that three models leave the fourth to us and to Postgres. */
const engineShareMb = (machine: Machine): number => Math.max(512, Math.floor(machine.memoryMb / 4))

const defaultDataDir = (machine: Machine, env: Environment): string => {
  // /root is closed to other users, and Postgres, which will not run as root, could not reach its files there.
  if (machine.root) return '/var/lib/parvis'
  const share = env['XDG_DATA_HOME']
  // The XDG base directory specification: a relative path is to be ignored.
  return join(share?.startsWith('/') ? share : join(machine.home, '.local', 'share'), 'parvis')
}

type Setting = {
  readonly env: string
  readonly yaml: string
  /** As it stands in the manual; what depends on the machine is said in words. */
  readonly default: string
  readonly what: string
}

/** Every setting there is. The manual and `--help` are made from this table. */
export const SETTINGS = [
  { env: 'PARVIS_HOST', yaml: 'host', default: '127.0.0.1', what: 'Address to listen on.' },
  { env: 'PARVIS_PORT', yaml: 'port', default: '8080', what: 'Port to listen on; 0 takes any free one.' },
  {
    env: 'PARVIS_DATA_DIR',
    yaml: 'dataDir',
    default: '~/.local/share/parvis (below $XDG_DATA_HOME when set); /var/lib/parvis for root',
    what: 'Where everything is kept: database, journal, master key, models.',
  },
  {
    env: 'PARVIS_DATABASE_URL',
    yaml: 'databaseUrl',
    default: 'the embedded PostgreSQL',
    what: 'A PostgreSQL server, 15 or newer: postgres://user:password@host:5432/database.',
  },
  {
    env: 'PARVIS_BOOTSTRAP_SECRET_KEY',
    yaml: 'bootstrapSecretKey',
    default: 'a random one, printed once',
    what: "A UUID: the secret of the owner's first key. It counts at the first start only.",
  },
  {
    env: 'PARVIS_MASTER_KEY',
    yaml: 'masterKey',
    default: 'made at first start in <dataDir>/master.key',
    what: '64 hexadecimal digits, under which keys are hashed and stored secrets sealed. The same for all processes on one database.',
  },
  { env: 'PARVIS_LOG_LEVEL', yaml: 'logLevel', default: 'info', what: 'fatal, error, warn, info, debug, trace or silent.' },
  {
    env: 'PARVIS_BEHIND_TLS',
    yaml: 'behindTls',
    default: 'false',
    what: 'Says that a proxy in front speaks TLS. Without it Parvis listens on this machine only.',
  },
  {
    env: 'PARVIS_TRUSTED_PROXIES',
    yaml: 'trustedProxies',
    default: 'none',
    what: 'Ranges like 10.0.0.0/8, with commas between them: proxies in front whose X-Forwarded-For says where a request comes from.',
  },
  {
    env: 'PARVIS_PUBLIC_URL',
    yaml: 'publicUrl',
    default: 'http:// and where it listens',
    what: "Where people reach Parvis: https://ai.example.com. Links in letters, the OpenID way back and Cockpit's addresses begin with it; needed behind a proxy.",
  },
  {
    env: 'PARVIS_CORS_ORIGINS',
    yaml: 'corsOrigins',
    default: 'none',
    what: 'Origins like https://app.example.com, with commas between them, whose pages may call the inference and the management API.',
  },
  {
    env: 'PARVIS_OIDC_ISSUER',
    yaml: 'oidcIssuer',
    default: 'none',
    what: 'The OpenID provider that people may sign in with: https://id.example.com. It must redirect to <public URL>/oidc/callback.',
  },
  { env: 'PARVIS_OIDC_CLIENT_ID', yaml: 'oidcClientId', default: 'none', what: 'What Parvis is called there.' },
  { env: 'PARVIS_OIDC_CLIENT_SECRET', yaml: 'oidcClientSecret', default: 'none', what: 'Its secret there.' },
  {
    env: 'PARVIS_OIDC_DOMAINS',
    yaml: 'oidcDomains',
    default: 'all',
    what: 'Domains like example.com, with commas between them: only addresses of these sign in with the provider.',
  },
  {
    env: 'PARVIS_OIDC_JOIN',
    yaml: 'oidcJoin',
    default: 'nobody',
    what: 'The id of an organization that whoever comes from PARVIS_OIDC_DOMAINS becomes a member of, without any rights at first. Otherwise only users that are there get in.',
  },
  {
    env: 'PARVIS_MAXIMA',
    yaml: 'maxima',
    default: Object.entries(MAXIMA)
      .map(([name, most]) => `${name}=${most}`)
      .join(','),
    what: 'How many of these an organization may have, up to 100000 of each. What is not named keeps its default.',
  },
  {
    env: 'PARVIS_DEMO_MODELS',
    yaml: 'demoModels',
    default: 'true',
    what: 'Puts the tiny models that come with Parvis into the catalogue.',
  },
  {
    env: 'PARVIS_ENGINE_THREADS',
    yaml: 'engineThreads',
    default: 'one less than there are cores',
    what: 'Threads of each embedded engine.',
  },
  {
    env: 'PARVIS_ENGINE_MEMORY_MB',
    yaml: 'engineMemoryMb',
    default: 'a quarter of the memory',
    what: 'What each embedded engine may use; a model that needs more is not loaded.',
  },
  {
    env: 'PARVIS_ENGINE_SEQUENCES',
    yaml: 'engineSequences',
    default: '8',
    what: 'Requests that an embedded engine computes side by side.',
  },
  {
    env: 'PARVIS_ENGINE_GPU',
    yaml: 'engineGpu',
    default: 'auto',
    what: 'auto uses a GPU where llama.cpp was installed with support for one; what `npm install` brings on Linux computes on the CPU. off never does.',
  },
  { env: 'HF_ENDPOINT', yaml: 'hubEndpoint', default: 'https://huggingface.co', what: 'The hub that `parvis models pull` asks.' },
  { env: 'HF_TOKEN', yaml: 'hubToken', default: 'none', what: 'Token for the hub.' },
  {
    env: 'PARVIS_REQUEST_TIMEOUT_SECONDS',
    yaml: 'requestTimeoutSeconds',
    default: '300',
    what: 'How long an inference request may take in all.',
  },
  {
    env: 'PARVIS_STREAM_PING_SECONDS',
    yaml: 'streamPingSeconds',
    default: '15',
    what: 'After how long without a byte a stream gets a comment, so that proxies keep it open; 0 for never.',
  },
  { env: 'PARVIS_BODY_TIMEOUT_SECONDS', yaml: 'bodyTimeoutSeconds', default: '30', what: 'How long a request body may take to arrive.' },
  {
    env: 'PARVIS_MAX_BODY_MB',
    yaml: 'maxBodyMb',
    default: '100',
    what: 'The largest request body; of responses and messages 32 MB at most, of a sound file 25 MB.',
  },
  { env: 'PARVIS_REGION', yaml: 'region', default: 'fr-par', what: 'The region that the price list, bills and clients name.' },
  {
    env: 'PARVIS_DOMAIN',
    yaml: 'domain',
    default: 'none',
    what: 'A domain whose every name leads here: data sources then have host names below it, as the vendor has them. Without one they are paths. Nothing answers there yet.',
  },
  {
    env: 'PARVIS_COCKPIT_NAME',
    yaml: 'cockpitName',
    default: 'Scaleway',
    what: "The first word in the names of every project's data sources, as clients know them: Scaleway Metrics, Scaleway Logs.",
  },
  { env: 'PARVIS_SELLER_NAME', yaml: 'sellerName', default: 'Parvis', what: 'Who stands on invoices as the seller.' },
  { env: 'PARVIS_TAX_NAME', yaml: 'taxName', default: 'VAT', what: 'What the tax on invoices is called.' },
  { env: 'PARVIS_TAX_PERCENT', yaml: 'taxPercent', default: '0', what: 'The tax on invoices, up to two digits behind the point: 20, 5.5.' },
  {
    env: 'PARVIS_FREE_TOKENS',
    yaml: 'freeTokens',
    default: '1000000',
    what: 'Tokens that cost an organization nothing, the dearest first.',
  },
  {
    env: 'PARVIS_FREE_AUDIO_SECONDS',
    yaml: 'freeAudioSeconds',
    default: '3600',
    what: 'The same for audio that is billed by time.',
  },
  {
    env: 'PARVIS_FREE_PERIOD',
    yaml: 'freePeriod',
    default: 'monthly',
    what: 'monthly gives the free tier each month, lifetime once.',
  },
  {
    env: 'PARVIS_BILL_GRACE_HOURS',
    yaml: 'billGraceHours',
    default: '24',
    what: 'How long after its end a month waits for usage that is still on its way, before it is closed.',
  },
  {
    env: 'PARVIS_SMTP_URL',
    yaml: 'smtpUrl',
    default: 'none',
    what: 'The mail server for alerts, invitations and new passwords: smtp://user:password@host:587, or smtps://. Without one no e-mail is sent.',
  },
  { env: 'PARVIS_MAIL_FROM', yaml: 'mailFrom', default: 'parvis@localhost', what: 'Who e-mails come from.' },
  { env: 'PARVIS_INVOICE_DUE_DAYS', yaml: 'invoiceDueDays', default: '10', what: 'How long an invoice may take to be paid.' },
  {
    env: 'PARVIS_GATEWAYS',
    yaml: 'gateways',
    default: '1',
    what: 'How many processes serve requests behind the one port, at most 64; auto for one to each core.',
  },
  {
    env: 'PARVIS_SHUTDOWN_SECONDS',
    yaml: 'shutdownSeconds',
    default: '30',
    what: 'How long running answers may take to end when the server is told to stop.',
  },
  {
    env: 'PARVIS_FETCH_ALLOW',
    yaml: 'fetchAllow',
    default: 'none',
    what: 'Ranges like 10.0.0.0/8, with commas between them, that are fetched from although they are not the public internet: images, documents, webhooks.',
  },
  {
    env: 'PARVIS_USAGE_RETENTION_MONTHS',
    yaml: 'usageRetentionMonths',
    default: '13',
    what: 'Full months, back from the newest one, for which usage events are kept; hourly totals stay for good.',
  },
  {
    env: 'PARVIS_CHARGE_FAILED',
    yaml: 'chargeFailed',
    default: 'false',
    what: 'Charges what was delivered of an answer whose engine failed or was too slow.',
  },
] as const satisfies readonly Setting[]

type Name = (typeof SETTINGS)[number]['yaml']

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i
const DAY_SECONDS = 86_400
const MOST_GATEWAYS = 64

/** What each setting may be. An optional one has no value until it is given. */
const SHAPE = {
  host: text,
  port: whole(0, 65_535),
  dataDir: text,
  databaseUrl: text
    .refine((value) => URL.canParse(value) && /^postgres(ql)?:$/.test(new URL(value).protocol), {
      error: 'must be an address like postgres://user:password@host:5432/database',
    })
    .optional(),
  bootstrapSecretKey: text
    .regex(UUID, { error: 'must be a UUID' })
    .transform((value) => value.toLowerCase())
    .optional(),
  masterKey: text.regex(/^[0-9a-f]{64}$/i, { error: 'must be 64 hexadecimal digits' }).optional(),
  logLevel: oneOf(['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent']),
  behindTls: flag,
  trustedProxies: ranges,
  publicUrl: webAddress.transform((value) => value.replace(/\/+$/, '')).optional(),
  corsOrigins: listed('origins').refine((values) => values.every(isOrigin), {
    error: 'must be origins like https://app.example.com, with commas between them',
  }),
  oidcIssuer: webAddress.optional(),
  oidcClientId: text.optional(),
  oidcClientSecret: text.optional(),
  oidcDomains: listed('domains').refine((values) => values.every((value) => DOMAIN.test(value)), {
    error: 'must be domains like example.com, with commas between them',
  }),
  oidcJoin: text.regex(UUID, { error: 'must be the id of an organization' }).optional(),
  maxima,
  demoModels: flag,
  engineThreads: whole(1, 1024),
  engineMemoryMb: whole(64, 16 * 2 ** 20),
  engineSequences: whole(1, 256),
  engineGpu: oneOf(['auto', 'off']),
  hubEndpoint: webAddress.transform((value) => value.replace(/\/+$/, '')),
  hubToken: text.optional(),
  requestTimeoutSeconds: whole(1, DAY_SECONDS),
  streamPingSeconds: whole(0, DAY_SECONDS),
  bodyTimeoutSeconds: whole(1, DAY_SECONDS),
  maxBodyMb: whole(1, 4096),
  region: text.regex(/^[a-z]{2}-[a-z]{3}$/, { error: 'must look like fr-par' }),
  domain: text
    .max(150, { error: 'must have at most 150 characters' })
    .regex(/^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z0-9-]+$/, { error: 'must look like ai.example.com' })
    .optional(),
  cockpitName: text.regex(/^[A-Za-z0-9-_. ]{1,40}$/, { error: 'must have 1 to 40 letters, digits, blanks, dots and dashes' }),
  sellerName: text.max(100, { error: 'must have at most 100 characters' }),
  taxName: text.max(50, { error: 'must have at most 50 characters' }),
  taxPercent: percent,
  freeTokens: whole(0, 1e15 - 1),
  freeAudioSeconds: whole(0, 1e12),
  freePeriod: oneOf(['monthly', 'lifetime']),
  billGraceHours: whole(0, 27 * 24),
  smtpUrl: text
    .refine((value) => URL.canParse(value) && /^smtps?:$/.test(new URL(value).protocol), {
      error: 'must be an address like smtp://user:password@host:587',
    })
    .optional(),
  mailFrom: text.max(320, { error: 'must have at most 320 characters' }),
  invoiceDueDays: whole(0, 365),
  gateways: z.union([z.literal('auto').transform(() => Math.min(availableParallelism(), MOST_GATEWAYS)), whole(1, MOST_GATEWAYS)], {
    error: `must be a whole number from 1 to ${MOST_GATEWAYS}, or auto`,
  }),
  shutdownSeconds: whole(0, DAY_SECONDS),
  usageRetentionMonths: whole(1, 1_200),
  chargeFailed: flag,
  fetchAllow: ranges,
} satisfies Record<Name, z.ZodType>

export type Config = { readonly [N in Name]: z.infer<(typeof SHAPE)[N]> } & {
  /** The file that was read, if there was one. */
  readonly configPath: string | undefined
  /** The embedded engines' share of the settings, as they are handed on. */
  readonly engine: {
    readonly threads: number
    readonly memoryMb: number
    readonly sequences: number
    readonly gpu: 'auto' | 'off'
    /** What engines are started in; they are not given our own settings of it. */
    readonly env: Environment
  }
}

const defaults = (machine: Machine, env: Environment): Partial<Record<Name, unknown>> => ({
  host: '127.0.0.1',
  port: 8080,
  dataDir: defaultDataDir(machine, env),
  logLevel: 'info',
  behindTls: false,
  trustedProxies: [],
  corsOrigins: [],
  oidcDomains: [],
  maxima: {},
  demoModels: true,
  // One core stays with the server, so that streams keep flowing while an engine computes.
  engineThreads: Math.max(1, machine.cores - 1),
  engineMemoryMb: engineShareMb(machine),
  engineSequences: 8,
  engineGpu: 'auto',
  hubEndpoint: 'https://huggingface.co',
  requestTimeoutSeconds: 300,
  streamPingSeconds: 15,
  bodyTimeoutSeconds: 30,
  maxBodyMb: 100,
  region: 'fr-par',
  cockpitName: 'Scaleway',
  sellerName: 'Parvis',
  taxName: 'VAT',
  taxPercent: '0',
  freeTokens: 1_000_000,
  freeAudioSeconds: 3_600,
  freePeriod: 'monthly',
  billGraceHours: 24,
  mailFrom: 'parvis@localhost',
  invoiceDueDays: 10,
  gateways: 1,
  shutdownSeconds: 30,
  usageRetentionMonths: 13,
  chargeFailed: false,
  fetchAllow: [],
})

/** How many letters must change to make one word out of the other (Levenshtein). */
const distance = (a: string, b: string): number => {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index)
  for (let i = 0; i < a.length; i += 1) {
    const next = [i + 1]
    for (let j = 0; j < b.length; j += 1) {
      next.push(Math.min((row[j + 1] ?? 0) + 1, (next[j] ?? 0) + 1, (row[j] ?? 0) + (a[i] === b[j] ? 0 : 1)))
    }
    row = next
  }
  return row[b.length] ?? 0
}

const suggest = (wrong: string, names: readonly string[]): string => {
  const [best] = names.map((name) => ({ name, far: distance(wrong.toLowerCase(), name.toLowerCase()) })).toSorted((a, b) => a.far - b.far)
  // Two letters may be swapped in a short word; further than a third of a long one is no likeness any more.
  return best !== undefined && best.far <= Math.max(2, wrong.length / 3) ? ` Did you mean ${best.name}?` : ''
}

const ENVIRONMENT_NAMES: readonly string[] = [...SETTINGS.map(({ env }) => env), 'PARVIS_CONFIG']

/** What our documents and examples have a client read: whoever exports them must still be able to run a command. */
const CLIENT_NAMES: readonly string[] = ['PARVIS_URL', 'PARVIS_API_KEY', 'PARVIS_MODEL', 'PARVIS_EMBEDDING_MODEL', 'PARVIS_SPEECH_MODEL']

/** Values from the environment. An empty variable is one that is not set: that is how compose files leave one out. */
const fromEnvironment = (env: Environment): Partial<Record<Name, string>> => {
  for (const name of Object.keys(env)) {
    if (!name.startsWith('PARVIS_') || name.startsWith('PARVIS_TEST_')) continue
    if (ENVIRONMENT_NAMES.includes(name) || CLIENT_NAMES.includes(name)) continue
    throw new Error(`There is no setting ${name}.${suggest(name, ENVIRONMENT_NAMES)}`)
  }
  return Object.fromEntries(SETTINGS.flatMap(({ env: name, yaml }) => (env[name] ? [[yaml, env[name]]] : [])))
}

/** What a child process may know: the environment without our own settings, some of which are secrets. */
export const foreignEnvironment = (env: Environment = process.env): Record<string, string> =>
  Object.fromEntries(
    Object.entries(env).flatMap(([name, value]) =>
      value === undefined || name.startsWith('PARVIS_') || ENVIRONMENT_NAMES.includes(name) ? [] : [[name, value]],
    ),
  )

const readIfThere = (path: string): string | undefined => {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    if (error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'ENOTDIR')) return undefined
    throw new Error(`The settings file ${path} cannot be read: ${error instanceof Error ? error.message : String(error)}`, { cause: error })
  }
}

const parseFile = (path: string, content: string): Partial<Record<Name, unknown>> => {
  const document = parseDocument(content)
  const [broken] = document.errors
  if (broken !== undefined) throw new Error(`The settings file ${path} is not valid YAML: ${broken.message}`)
  const values: unknown = document.toJS() ?? {}
  if (typeof values !== 'object' || values === null || Array.isArray(values)) {
    throw new Error(`The settings file ${path} must be a list of "name: value" lines.`)
  }
  const names = SETTINGS.map(({ yaml }) => yaml)
  for (const [name, value] of Object.entries(values)) {
    if (!(names as string[]).includes(name)) throw new Error(`${path}: there is no setting ${name}.${suggest(name, names)}`)
    if (value === null) throw new Error(`${path}: the setting ${name} has no value. Remove the line to use the default.`)
  }
  return values
}

export type Overrides = {
  /** `--config`; it must be there. */
  readonly configPath?: string | undefined
  /** What stands on the command line, by the names of the file. */
  readonly values?: Partial<Record<Name, unknown>> | undefined
}

const isLoopback = (host: string): boolean => host === 'localhost' || host === '::1' || (isIPv4(host) && host.startsWith('127.'))

/** The settings of an OpenID provider are all there or none is, and nobody joins an organization from just anywhere. */
const requireProvider = (config: Config): void => {
  const { oidcIssuer: issuer, oidcClientId: id, oidcClientSecret: secret } = config
  if (issuer === undefined && id === undefined && secret === undefined && config.oidcJoin === undefined) return
  if (issuer === undefined || id === undefined || secret === undefined)
    throw new Error('PARVIS_OIDC_ISSUER, PARVIS_OIDC_CLIENT_ID and PARVIS_OIDC_CLIENT_SECRET go together: set all three.')
  const { protocol, hostname } = new URL(issuer)
  if (protocol !== 'https:' && !isLoopback(hostname))
    throw new Error('PARVIS_OIDC_ISSUER must begin with https://: whoever listens on the way could sign in as anybody.')
  if (config.oidcJoin !== undefined && config.oidcDomains.length === 0)
    throw new Error('PARVIS_OIDC_JOIN needs PARVIS_OIDC_DOMAINS: otherwise everybody that the provider knows would become a member.')
}

/**
 * Reads all settings once: defaults, then the file, then the environment, then the command line. Whatever is unknown or
 * wrong is an error that names it. The file is the one given (`--config`, PARVIS_CONFIG), else ./parvis.yaml, else
 * parvis.yaml in the data directory.
 */
export const readConfig = (
  env: Environment = process.env,
  cwd: string = process.cwd(),
  overrides: Overrides = {},
  machine: Machine = thisMachine(),
): Config => {
  const fallback = defaults(machine, env)
  const environment = fromEnvironment(env)
  const given = Object.fromEntries(Object.entries(overrides.values ?? {}).filter(([, value]) => value !== undefined))
  const absolute = (path: string): string => resolve(cwd, path.replace(/^~(?=\/|$)/, machine.home))
  const dataDirBefore = absolute(String(given['dataDir'] ?? environment.dataDir ?? fallback.dataDir))

  const asked = overrides.configPath ?? (env['PARVIS_CONFIG'] || undefined)
  const inDataDir = join(dataDirBefore, 'parvis.yaml')
  const places = asked === undefined ? [resolve(cwd, 'parvis.yaml'), inDataDir] : [resolve(cwd, asked)]
  let file: { path: string; values: Partial<Record<Name, unknown>> } | undefined
  for (const path of places) {
    const content = readIfThere(path)
    if (content === undefined) continue
    file = { path, values: parseFile(path, content) }
    break
  }
  if (file === undefined && asked !== undefined) throw new Error(`The settings file ${places[0]} does not exist.`)
  if (file?.path === inDataDir && file.values.dataDir !== undefined) {
    throw new Error(
      `${file.path}: dataDir cannot be set in the file that was found by it. Set PARVIS_DATA_DIR, or move the file and name it with --config.`,
    )
  }

  const value = <N extends Name>(name: N): z.infer<(typeof SHAPE)[N]> => {
    const sources: readonly (readonly [string, Partial<Record<Name, unknown>>])[] = [
      [`--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`, given],
      [SETTINGS.find((setting) => setting.yaml === name)?.env ?? name, environment],
      [`${file?.path}: ${name}`, file?.values ?? {}],
      [`The default of ${name}`, fallback],
    ]
    const source = sources.find(([, values]) => values[name] !== undefined)
    const parsed = SHAPE[name].safeParse(source?.[1][name])
    // The value itself is not repeated: it may be a secret that went into the wrong variable.
    if (!parsed.success) throw new Error(`${source?.[0] ?? name} ${parsed.error.issues[0]?.message ?? 'is not valid'}.`)
    return parsed.data as z.infer<(typeof SHAPE)[N]>
  }

  const config: Config = {
    ...(Object.fromEntries(SETTINGS.map(({ yaml }) => [yaml, value(yaml)])) as Omit<Config, 'configPath' | 'engine'>),
    dataDir: absolute(value('dataDir')),
    configPath: file?.path,
    engine: {
      threads: value('engineThreads'),
      memoryMb: value('engineMemoryMb'),
      sequences: value('engineSequences'),
      gpu: value('engineGpu'),
      env: foreignEnvironment(env),
    },
  }
  if (!isLoopback(config.host) && !config.behindTls) {
    throw new Error(
      `PARVIS_HOST is ${config.host}, which other machines can reach, and Parvis speaks plain HTTP: keys would cross the network in the clear. Put a TLS proxy in front and set PARVIS_BEHIND_TLS=true, or listen on 127.0.0.1.`,
    )
  }
  requireProvider(config)
  return config
}

/** Settings as another process of the house has read them. What is ours of the machine and the files is in them already. */
export const parseSettings = (sent: unknown): Config => {
  const values = z
    .looseObject({ configPath: z.string().optional(), engine: z.looseObject({ env: z.record(z.string(), z.string()) }) })
    .parse(sent)
  const settings = Object.fromEntries(SETTINGS.map(({ yaml }) => [yaml, SHAPE[yaml].parse(values[yaml])])) as Omit<
    Config,
    'configPath' | 'engine'
  >
  const { engineThreads: threads, engineMemoryMb: memoryMb, engineSequences: sequences, engineGpu: gpu } = settings
  return { ...settings, configPath: values.configPath, engine: { threads, memoryMb, sequences, gpu, env: values.engine.env } }
}
