import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { type Environment, type Machine, type Overrides, parseSettings, readConfig, SETTINGS } from './config.ts'

let cwd: string
beforeEach(async () => {
  cwd = await mkdtemp(join(tmpdir(), 'parvis-config-'))
})
afterEach(() => rm(cwd, { recursive: true, force: true }))

const laptop: Machine = { root: false, home: '/home/ada', cores: 8, memoryMb: 16_000 }
const read = (env: Environment = {}, overrides: Overrides = {}, machine: Machine = laptop) => readConfig(env, cwd, overrides, machine)
const file = (content: string, name = 'parvis.yaml') => writeFile(join(cwd, name), content)

test('without any setting there are the defaults of the manual', () => {
  expect(read()).toMatchObject({
    host: '127.0.0.1',
    port: 8080,
    dataDir: '/home/ada/.local/share/parvis',
    databaseUrl: undefined,
    bootstrapSecretKey: undefined,
    logLevel: 'info',
    behindTls: false,
    trustedProxies: [],
    demoModels: true,
    engineThreads: 7,
    engineMemoryMb: 4000,
    engineSequences: 8,
    engineGpu: 'auto',
    hubEndpoint: 'https://huggingface.co',
    requestTimeoutSeconds: 300,
    streamPingSeconds: 15,
    bodyTimeoutSeconds: 30,
    maxBodyMb: 100,
    shutdownSeconds: 30,
    fetchAllow: [],
    configPath: undefined,
    engine: { threads: 7, memoryMb: 4000, sequences: 8, gpu: 'auto' },
  })
})

test('the data directory follows XDG, except for root, whose home is closed to the database', () => {
  expect(read({ XDG_DATA_HOME: '/data' }).dataDir).toBe('/data/parvis')
  expect(read({ XDG_DATA_HOME: 'relative' }).dataDir).toBe('/home/ada/.local/share/parvis')
  expect(read({ XDG_DATA_HOME: '/data' }, {}, { ...laptop, root: true }).dataDir).toBe('/var/lib/parvis')
  expect(read({ PARVIS_DATA_DIR: 'here' }).dataDir).toBe(join(cwd, 'here'))
  expect(read({ PARVIS_DATA_DIR: '~/parvis' }).dataDir).toBe('/home/ada/parvis')
})

test('one core always remains an engine thread', () => {
  expect(read({}, {}, { ...laptop, cores: 1 }).engineThreads).toBe(1)
})

test('the command line wins over the environment, that over the file, that over the default', async () => {
  await file('port: 1001\nmaxBodyMb: 7\nlogLevel: debug\n')
  const config = read({ PARVIS_PORT: '1002', PARVIS_MAX_BODY_MB: '8' }, { values: { port: '1003', host: undefined } })
  expect(config).toMatchObject({
    port: 1003,
    maxBodyMb: 8,
    logLevel: 'debug',
    bodyTimeoutSeconds: 30,
    configPath: join(cwd, 'parvis.yaml'),
  })
})

test('the file is the one given, else the one here, else the one in the data directory', async () => {
  await mkdir(join(cwd, 'data'))
  await file('port: 1', 'data/parvis.yaml')
  expect(read({ PARVIS_DATA_DIR: 'data' }).port).toBe(1)
  await file('port: 2')
  expect(read({ PARVIS_DATA_DIR: 'data' }).port).toBe(2)
  await file('port: 3', 'other.yaml')
  expect(read({ PARVIS_DATA_DIR: 'data', PARVIS_CONFIG: 'other.yaml' }).port).toBe(3)
  await file('port: 4', 'third.yaml')
  expect(read({ PARVIS_CONFIG: 'other.yaml' }, { configPath: 'third.yaml' }).port).toBe(4)
  expect(() => read({ PARVIS_CONFIG: 'gone.yaml' })).toThrow(/gone\.yaml does not exist/)
})

test('a file in the data directory cannot point at another data directory', async () => {
  await mkdir(join(cwd, 'data'))
  await file('dataDir: /elsewhere', 'data/parvis.yaml')
  expect(() => read({ PARVIS_DATA_DIR: 'data' })).toThrow(/dataDir cannot be set in the file that was found by it/)
})

test.each([
  ['PARVIS_PROT', 'There is no setting PARVIS_PROT. Did you mean PARVIS_PORT?'],
  ['PARVIS_ENGINE_THREAD', 'There is no setting PARVIS_ENGINE_THREAD. Did you mean PARVIS_ENGINE_THREADS?'],
  ['PARVIS_COLOUR_SCHEME_OF_THE_CONSOLE', /^There is no setting PARVIS_COLOUR_SCHEME_OF_THE_CONSOLE\.$/],
])('an unknown variable is named: %s', (name, message) => {
  expect(() => read({ [name]: 'x' })).toThrow(message)
})

test('what a client reads is not ours to judge: the examples and the command line live in one shell', () => {
  const client = {
    PARVIS_URL: 'http://127.0.0.1:8080',
    PARVIS_API_KEY: 'x',
    PARVIS_MODEL: 'x',
    PARVIS_EMBEDDING_MODEL: 'x',
    PARVIS_SPEECH_MODEL: 'x',
  }
  expect(read({ ...client, PARVIS_PORT: '1' }).port).toBe(1)
})

test('variables of tests and of others are not ours to judge, and an empty one is not set', () => {
  expect(read({ PARVIS_TEST_DATABASE: 'system', PATH: '/bin', HF_HOME: '/x', PARVIS_PORT: '' }).port).toBe(8080)
})

test.each([
  ['prot: 1', 'there is no setting prot. Did you mean port?'],
  ['port:', 'the setting port has no value'],
  ['port: 1\nport: 2', 'is not valid YAML'],
  ['port: [', 'is not valid YAML'],
  ['- port', 'must be a list of "name: value" lines'],
  ['port: 1.5', /parvis\.yaml: port must be a whole number\.$/],
  ['port: 70000', /parvis\.yaml: port must be between 0 and 65535\.$/],
  ['behindTls: "yes"', /parvis\.yaml: behindTls must be true or false\.$/],
  ['dataDir: 7', /parvis\.yaml: dataDir must be text\.$/],
])('a wrong file is refused with the name of what is wrong: %s', async (content, message) => {
  await file(content)
  expect(() => read()).toThrow(message)
})

test.each([
  ['PARVIS_PORT', 'http', 'PARVIS_PORT must be a whole number.'],
  ['PARVIS_PORT', '-1', 'PARVIS_PORT must be a whole number.'],
  ['PARVIS_MAX_BODY_MB', '0', 'PARVIS_MAX_BODY_MB must be between 1 and 4096.'],
  ['PARVIS_LOG_LEVEL', 'loud', 'PARVIS_LOG_LEVEL must be one of fatal, error, warn, info, debug, trace, silent.'],
  ['PARVIS_BEHIND_TLS', '1', 'PARVIS_BEHIND_TLS must be true or false.'],
  ['PARVIS_ENGINE_GPU', 'cuda', 'PARVIS_ENGINE_GPU must be one of auto, off.'],
  ['PARVIS_DATABASE_URL', 'mysql://x', 'PARVIS_DATABASE_URL must be an address like postgres://'],
  ['HF_ENDPOINT', 'huggingface.co', 'HF_ENDPOINT must be an http:// or https:// address.'],
  ['PARVIS_PUBLIC_URL', 'ai.example.com', 'PARVIS_PUBLIC_URL must be an http:// or https:// address.'],
  ['PARVIS_CORS_ORIGINS', '*', 'PARVIS_CORS_ORIGINS must be origins like https://app.example.com'],
  ['PARVIS_CORS_ORIGINS', 'https://app.example.com/', 'PARVIS_CORS_ORIGINS must be origins like'],
  ['PARVIS_CORS_ORIGINS', 'https://a.example,null', 'PARVIS_CORS_ORIGINS must be origins like'],
  ['PARVIS_OIDC_DOMAINS', '@example.com', 'PARVIS_OIDC_DOMAINS must be domains like example.com'],
  ['PARVIS_OIDC_ISSUER', 'https://id.example.com', 'go together: set all three'],
  ['PARVIS_OIDC_CLIENT_SECRET', 'x', 'go together: set all three'],
])('a wrong variable is refused by its name: %s=%s', (name, value, message) => {
  expect(() => read({ [name]: value })).toThrow(message)
})

test('an OpenID provider is asked over TLS or on this machine, and nobody joins an organization from anywhere', () => {
  const provider = { PARVIS_OIDC_ISSUER: 'https://id.example.com', PARVIS_OIDC_CLIENT_ID: 'parvis', PARVIS_OIDC_CLIENT_SECRET: 'x' }
  expect(read(provider)).toMatchObject({ oidcIssuer: 'https://id.example.com', oidcDomains: [], oidcJoin: undefined })
  expect(read({ ...provider, PARVIS_OIDC_ISSUER: 'http://127.0.0.1:9000' }).oidcIssuer).toBe('http://127.0.0.1:9000')
  expect(() => read({ ...provider, PARVIS_OIDC_ISSUER: 'http://id.example.com' })).toThrow('must begin with https://')
  const join = { ...provider, PARVIS_OIDC_JOIN: '0190a000-0000-7000-8000-000000000001' }
  expect(() => read(join)).toThrow('PARVIS_OIDC_JOIN needs PARVIS_OIDC_DOMAINS')
  expect(read({ ...join, PARVIS_OIDC_DOMAINS: 'example.com, example.org' }).oidcDomains).toEqual(['example.com', 'example.org'])
})

test('a wrong secret is named but not repeated', () => {
  for (const name of ['PARVIS_MASTER_KEY', 'PARVIS_BOOTSTRAP_SECRET_KEY', 'PARVIS_DATABASE_URL']) {
    let message = ''
    try {
      read({ [name]: 'sesame' })
    } catch (error) {
      message = String(error)
    }
    expect(message).toContain(name)
    expect(message).not.toContain('sesame')
  }
})

test('other machines may only reach a Parvis that says it is behind TLS', () => {
  for (const host of ['0.0.0.0', '::', '192.168.1.5', 'parvis.example']) {
    expect(() => read({ PARVIS_HOST: host })).toThrow(/keys would cross the network in the clear.*PARVIS_BEHIND_TLS=true/)
    expect(read({ PARVIS_HOST: host, PARVIS_BEHIND_TLS: 'true' }).host).toBe(host)
  }
  for (const host of ['127.0.0.1', '127.1.2.3', '::1', 'localhost']) expect(read({ PARVIS_HOST: host }).host).toBe(host)
})

test('a secret key is the same in any case, and addresses lose the slash at their end', () => {
  const config = read({ PARVIS_BOOTSTRAP_SECRET_KEY: '1F000000-0000-4000-8000-00000000000A', HF_ENDPOINT: 'http://127.0.0.1:9/' })
  expect(config.bootstrapSecretKey).toBe('1f000000-0000-4000-8000-00000000000a')
  expect(config.hubEndpoint).toBe('http://127.0.0.1:9')
})

test('each setting has one name in the environment and one in the file', () => {
  expect(new Set(SETTINGS.map(({ env }) => env)).size).toBe(SETTINGS.length)
  expect(new Set(SETTINGS.map(({ yaml }) => yaml)).size).toBe(SETTINGS.length)
})

test('ranges to fetch from are a list in the file and commas in the environment', async () => {
  expect(read({ PARVIS_FETCH_ALLOW: '10.0.0.0/8, fd00::/8' }).fetchAllow).toEqual(['10.0.0.0/8', 'fd00::/8'])
  await file('fetchAllow: [127.0.0.1]\n')
  expect(read().fetchAllow).toEqual(['127.0.0.1'])
  expect(() => read({ PARVIS_FETCH_ALLOW: 'intranet' })).toThrow('PARVIS_FETCH_ALLOW must be ranges like 10.0.0.0/8')
})

test('gateways are a number up to 64, or as many as there are cores', () => {
  expect(read({ PARVIS_GATEWAYS: '64' }).gateways).toBe(64)
  expect(read({ PARVIS_GATEWAYS: 'auto' }).gateways).toBeGreaterThanOrEqual(1)
  for (const wrong of ['0', '65', 'x', '1.5', '-1']) expect(() => read({ PARVIS_GATEWAYS: wrong })).toThrow(/^PARVIS_GATEWAYS must be/)
})

test('what is named of the maxima is what the settings say, and the rest stays', async () => {
  const before = { IamApiKeys: 50, IamApplications: 100, IamGroups: 50, IamPolicies: 50, IamUsers: 50, AccountProjects: 25 }
  expect(read().maxima).toEqual(before)
  expect(read({ PARVIS_MAXIMA: 'IamUsers=500, IamApiKeys = 100000' }).maxima).toEqual({ ...before, IamUsers: 500, IamApiKeys: 100_000 })
  await file('maxima:\n  AccountProjects: 1\n  IamGroups: "7"\n')
  expect(read().maxima).toEqual({ ...before, AccountProjects: 1, IamGroups: 7 })
  await file('maxima: IamPolicies=60\n')
  expect(read().maxima).toEqual({ ...before, IamPolicies: 60 })
})

const MAXIMA_ALLOWED =
  'must be like IamUsers=500,IamApiKeys=2000: each of IamApiKeys, IamApplications, IamGroups, IamPolicies, IamUsers, AccountProjects at most once, with a whole number from 1 to 100000.'

test.each([
  'IamUsers',
  'IamUsers=',
  'IamUsers=0',
  'IamUsers=-1',
  'IamUsers=1.5',
  'IamUsers=many',
  'IamUsers=100001',
  'IamUsers=5=6',
  'IamUsers=5,',
  'IamUsers=5,IamUsers=6',
  'IamUsers=5,InferenceL4Nodes=9',
  'users=500',
  'iamusers=500',
  'constructor=5',
  '500',
])('maxima that cannot be are refused with what they may be: %s', (value) => {
  expect(() => read({ PARVIS_MAXIMA: value })).toThrow(`PARVIS_MAXIMA ${MAXIMA_ALLOWED}`)
})

test.each([
  ['{ IamUsers: 0 }', MAXIMA_ALLOWED],
  ['{ IamUsers: 1.5 }', MAXIMA_ALLOWED],
  ['{ IamUsers: }', MAXIMA_ALLOWED],
  ['{ IamUsers: [5] }', MAXIMA_ALLOWED],
  ['{ users: 5 }', MAXIMA_ALLOWED],
  ['{ IamUsers: 5, IamUsers: 6 }', 'is not valid YAML'],
  ['500', 'must be text or a map, like IamUsers=500,IamApiKeys=2000.'],
  ['[IamUsers=5]', 'must be text or a map, like IamUsers=500,IamApiKeys=2000.'],
])('nor in the file: %s', async (value, message) => {
  await file(`maxima: ${value}\n`)
  expect(() => read()).toThrow(message)
})

test('what one process has read another one gets as it is, and nothing else', async () => {
  await file('fetchAllow: 10.0.0.0/8\ntaxPercent: 5.5\nmaxima: { IamUsers: 500 }\n')
  const config = read({ PARVIS_PUBLIC_URL: 'https://ai.example.com/', PARVIS_GATEWAYS: '3', PATH: '/bin' })
  const sent: unknown = JSON.parse(JSON.stringify(config))
  expect(parseSettings(sent)).toEqual(config)
  expect(() => parseSettings({ ...(sent as object), port: 'x' })).toThrow('must be a whole number')
})
