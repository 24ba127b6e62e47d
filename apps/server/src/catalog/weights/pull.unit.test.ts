import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { type Hub, type HubRepo, startHub } from '@parvis/testkit/hub'
import { FROM_SOURCE } from '@parvis/testkit/program'
import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { systemClock } from '../../kit/clock.ts'
import { resolveWeights, type WeightsDirs } from '../weights-path.ts'
import { pulledToModel } from './entry.ts'
import { deletePulled, type PullOptions, pullModel } from './pull.ts'

const MODELS = fileURLToPath(new URL('../../../../../models', import.meta.url))
const PULLER = fileURLToPath(new URL('../../../test/children/puller.ts', import.meta.url))
const CHAT_FILE = join(MODELS, 'tiny-chat/tiny-chat-q8_0.gguf')
const REPO = 'acme/Tiny-Chat-GGUF'
const FILE = 'Tiny-Chat-Q8_0.gguf'
const MB = 1024 * 1024

let chat: Buffer
let embed: Buffer
let dir: string
let dirs: WeightsDirs
let hub: Hub | undefined

beforeAll(async () => {
  chat = await readFile(CHAT_FILE)
  embed = await readFile(join(MODELS, 'tiny-embed/tiny-embed-f16.gguf'))
})
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'parvis-pull-'))
  dirs = { builtin: MODELS, pulled: join(dir, 'models') }
})
afterEach(async () => {
  await hub?.close()
  hub = undefined
  await rm(dir, { recursive: true, force: true })
})

const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')

const open = async (repo: Partial<HubRepo> & { files?: Record<string, Buffer> } = {}): Promise<Hub> => {
  hub = await startHub({ [REPO]: { files: { 'README.md': Buffer.from('# hello'), [FILE]: chat }, ...repo } })
  return hub
}

const pull = (options: Partial<PullOptions> = {}) =>
  pullModel({
    reference: REPO,
    endpoint: hub?.url ?? 'http://127.0.0.1:9',
    token: undefined,
    weightsDirs: dirs,
    clock: systemClock,
    signal: new AbortController().signal,
    retries: { delayMs: 1, maxDelayMs: 4 },
    limits: { connectMs: 30_000, headersMs: 30_000, idleMs: 30_000 },
    ...options,
  })

/** Every file below the pulled folder, by its path. */
const kept = async (): Promise<string[]> =>
  (await readdir(dirs.pulled, { recursive: true, withFileTypes: true }).catch(() => []))
    .flatMap((entry) => (entry.isFile() ? [entry.name] : []))
    .sort()

const downloads = (): { range: string | undefined }[] =>
  (hub?.requests ?? []).filter((request) => request.server === 'cdn').map((request) => ({ range: request.headers.range }))

describe('a pull that goes well', () => {
  test('brings the file, checked, under a name of its own, and reads what it is', async () => {
    await open()
    const progress: number[] = []
    const pulled = await pull({ onProgress: ({ receivedBytes, totalBytes }) => progress.push(receivedBytes / totalBytes) })
    expect(pulled).toMatchObject({
      fetched: true,
      weights: { bytes: chat.length, sha256: sha256(chat) },
      gguf: { architecture: 'llama', quantization: 'Q8_0' },
    })
    expect(pulled.weights.path).toBe(`pulled:${REPO}/${sha256(chat).slice(0, 12)}/${FILE}`)
    expect(pulled.found).toMatchObject({ name: 'tiny-chat', ownedBy: 'acme', licence: 'apache-2.0', because: 'it is the only one' })
    expect(sha256(await readFile(resolveWeights(dirs, pulled.weights.path)))).toBe(sha256(chat))
    expect(await kept()).toEqual([FILE])
    expect(progress[0]).toBe(0)
    expect(progress.at(-1)).toBe(1)
    expect(progress.toSorted((a, b) => a - b)).toEqual(progress)
  })

  test('the files are of one commit, whatever the branch does meanwhile', async () => {
    const { commit, requests } = await open()
    await pull()
    expect(requests.filter((request) => request.server === 'resolve').map((request) => request.path)).toEqual([
      `/${REPO}/resolve/${commit}/${FILE}`,
    ])
  })

  test('a second pull finds it there and fetches nothing', async () => {
    await open()
    const first = await pull()
    const before = downloads().length
    const second = await pull()
    expect(second).toEqual({ ...first, fetched: false })
    expect(downloads()).toHaveLength(before)
  })

  test('a file that was damaged on the disk since is fetched again', async () => {
    await open()
    const { weights } = await pull()
    const path = resolveWeights(dirs, weights.path)
    const damaged = Buffer.from(chat)
    damaged[MB] = (damaged[MB] ?? 0) ^ 1
    await writeFile(path, damaged)
    expect(await pull()).toMatchObject({ fetched: true })
    expect(sha256(await readFile(path))).toBe(sha256(chat))
  })

  test('an endpoint with a slash at its end, and a repository that was moved', async () => {
    hub = await startHub({ [REPO]: { files: {}, movedTo: 'acme/renamed' }, 'acme/renamed': { files: { [FILE]: chat } } })
    expect(await pull({ endpoint: `${hub.url}/` })).toMatchObject({ fetched: true, weights: { sha256: sha256(chat) } })
  })

  test('a file without a checksum in the list is sized by asking, and kept when its length is right', async () => {
    await open({ plain: [FILE] })
    expect(await pull()).toMatchObject({ weights: { sha256: sha256(chat), bytes: chat.length } })
  })

  test('the parts of a split model come together, and are one model', async () => {
    const part = (index: number): Buffer => splitPart(chat, index, 2)
    await open({ files: { 'm-Q8_0-00002-of-00002.gguf': part(1), 'm-Q8_0-00001-of-00002.gguf': part(0) } })
    const pulled = await pull({ reference: `${REPO}:m-Q8_0-00002-of-00002.gguf` })
    expect(pulled.found.files).toEqual(['m-Q8_0-00001-of-00002.gguf', 'm-Q8_0-00002-of-00002.gguf'])
    expect(pulled.weights.path).toMatch(/m-Q8_0-00001-of-00002\.gguf$/)
    expect(pulled.weights.bytes).toBe(part(0).length + part(1).length)
    expect(pulled.gguf.architecture).toBe('llama')
    expect(await kept()).toHaveLength(2)
    expect(await deletePulled(dirs, pulled.weights.path)).toBe(true)
    expect(await readdir(dirs.pulled)).toEqual([])
  })

  test('what was found is told before anything is fetched, and can be declined', async () => {
    await open()
    await expect(
      pull({
        onFound: (found) => {
          throw new Error(`not ${found.name} (${found.bytes})`)
        },
      }),
    ).rejects.toThrow(`not tiny-chat (${chat.length})`)
    expect(downloads()).toEqual([])
    expect(await kept()).toEqual([])
  })
})

describe('a broken transfer goes on where it was', () => {
  test('within one pull, asking only for the rest', async () => {
    const { fail } = await open()
    fail('cdn', { do: 'cut', afterBytes: MB })
    fail('cdn', { do: 'cut', afterBytes: MB })
    expect(await pull()).toMatchObject({ weights: { sha256: sha256(chat) } })
    const asked = downloads()
    expect(asked).toHaveLength(3)
    expect(asked[0]?.range).toBeUndefined()
    const second = Number(/^bytes=(\d+)-$/.exec(asked[1]?.range ?? '')?.[1])
    expect(second).toBeGreaterThan(0)
    expect(second).toBeLessThanOrEqual(MB)
    expect(Number(/^bytes=(\d+)-$/.exec(asked[2]?.range ?? '')?.[1])).toBeGreaterThan(second)
  })

  test('in a later pull, after giving up', async () => {
    const { fail } = await open()
    fail('cdn', { do: 'cut', afterBytes: 2 * MB })
    fail('cdn', { do: 'status', status: 500 }, 5)
    await expect(pull()).rejects.toThrow(
      /did not arrive: .* answers 500\. Tried 6 times in a row\. What has arrived is kept; the same command goes on from there\./,
    )
    expect(await kept()).toEqual([`${FILE}.partial`, `${FILE}.partial.json`])
    const before = downloads().length
    expect(await pull()).toMatchObject({ weights: { sha256: sha256(chat) } })
    expect(downloads().slice(before)).toEqual([{ range: expect.stringMatching(/^bytes=[1-9]\d+-$/) }])
    expect(await kept()).toEqual([FILE])
  })

  test('in a later pull, after this one was stopped in the middle', async () => {
    await open()
    const stop = new AbortController()
    const half = chat.length / 2
    await expect(pull({ signal: stop.signal, onProgress: ({ receivedBytes }) => receivedBytes > half && stop.abort() })).rejects.toThrow(
      /abort/i,
    )
    expect(await kept()).toEqual([`${FILE}.partial`, `${FILE}.partial.json`])
    expect(await pull()).toMatchObject({ weights: { sha256: sha256(chat) } })
    expect(downloads().at(-1)?.range).toMatch(/^bytes=[1-9]/)
  })

  test('in a later pull, after the process was killed: neither its lock nor its half stand in the way', async () => {
    const opened = await open()
    let sent = 0
    opened.hold = async () => {
      sent += 1
      // Half of the file has been handed to the other process; it shall not get more while it lives.
      if (sent > 28) await new Promise<void>(() => undefined)
    }
    const child = spawn(process.execPath, [...FROM_SOURCE, PULLER, opened.url, REPO, MODELS, dirs.pulled], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const gone = once(child, 'exit')
    for await (const line of createInterface(child.stdout)) if (Number(line) > MB) break
    child.kill('SIGKILL')
    await gone
    expect((await kept()).filter((name) => !name.endsWith('.socket'))).toEqual([`${FILE}.lock`, `${FILE}.partial`, `${FILE}.partial.json`])
    opened.hold = undefined
    expect(await pull()).toMatchObject({ weights: { sha256: sha256(chat) } })
    expect(Number(/^bytes=(\d+)-$/.exec(downloads().at(-1)?.range ?? '')?.[1])).toBeGreaterThan(MB / 2)
    expect(await kept()).toEqual([FILE])
  })

  test('after a disk that was full has room again', async () => {
    const opened = await open()
    // A limit on the size of a file makes writes fail as a full disk does.
    const words = [process.execPath, ...FROM_SOURCE, PULLER, opened.url, REPO, MODELS, dirs.pulled]
    const child = spawn('bash', ['-c', 'ulimit -S -f 2048; exec "$0" "$@"', ...words], { stdio: ['ignore', 'ignore', 'pipe'] })
    const [said] = await Promise.all([text(child.stderr), once(child, 'exit')])
    expect(said).toMatch(/partial cannot be written: EFBIG.*What has arrived is kept; the same command goes on from there\./)
    expect(await kept()).toEqual([`${FILE}.partial`, `${FILE}.partial.json`])
    expect(downloads()).toHaveLength(1)
    expect(await pull()).toMatchObject({ weights: { sha256: sha256(chat) } })
    expect(downloads().at(-1)?.range).toMatch(/^bytes=[1-9]/)
  })

  test('also when the break comes at every megabyte: patience is for breaks without progress', async () => {
    const { fail } = await open()
    fail('cdn', { do: 'cut', afterBytes: 300_000 }, 12)
    expect(await pull()).toMatchObject({ weights: { sha256: sha256(chat) } })
  })

  test('but not for ever when nothing arrives', async () => {
    const { fail } = await open()
    fail('cdn', { do: 'cut', afterBytes: 0 }, 6)
    await expect(pull()).rejects.toThrow(/did not arrive: .* Tried 6 times in a row\. Try again later\./)
    expect(downloads()).toHaveLength(6)
    expect(await kept()).toEqual([])
  })

  test('a transfer that stands still is given up after a while and taken up again', async () => {
    const { fail } = await open()
    fail('cdn', { do: 'stall', afterBytes: MB })
    expect(await pull({ limits: { connectMs: 30_000, headersMs: 30_000, idleMs: 1_500 } })).toMatchObject({
      weights: { sha256: sha256(chat) },
    })
    expect(downloads()).toHaveLength(2)
  })

  test('a server that says nothing is given up after a while and asked again', async () => {
    const { fail } = await open()
    fail('cdn', { do: 'silence' })
    fail('resolve', { do: 'silence' })
    expect(await pull({ limits: { connectMs: 30_000, headersMs: 300, idleMs: 30_000 } })).toMatchObject({
      weights: { sha256: sha256(chat) },
    })
  })

  test('a body without a length that ends early is seen to be short', async () => {
    const { fail } = await open()
    fail('cdn', { do: 'short', afterBytes: MB })
    expect(await pull()).toMatchObject({ weights: { sha256: sha256(chat) } })
    expect(downloads()).toHaveLength(2)
  })

  test('too many requests: as long as the hub asks for is waited', async () => {
    const { fail } = await open()
    fail('resolve', { do: 'status', status: 429, headers: { 'retry-after': '7' } })
    fail('api', { do: 'status', status: 503 })
    const slept: number[] = []
    const clock = { ...systemClock, sleep: async (ms: number) => void slept.push(ms) }
    expect(await pull({ clock })).toMatchObject({ weights: { sha256: sha256(chat) } })
    expect(slept).toEqual([1, 7_000])
  })
})

describe('two halves of different files never become one', () => {
  test('a store that ignores the range starts the file again', async () => {
    const { fail } = await open()
    fail('cdn', { do: 'cut', afterBytes: MB })
    fail('cdn', { do: 'ignore-range' })
    expect(await pull()).toMatchObject({ weights: { sha256: sha256(chat) } })
    expect(downloads()).toHaveLength(2)
  })

  test('a range that begins somewhere else is not taken', async () => {
    const { fail } = await open()
    fail('cdn', { do: 'cut', afterBytes: MB })
    fail('cdn', { do: 'wrong-range' })
    expect(await pull()).toMatchObject({ weights: { sha256: sha256(chat) } })
    expect(downloads().at(-1)?.range).toBeUndefined()
  })

  test('a file that changed in between is asked for with If-Range, and starts again', async () => {
    const other = Buffer.from(chat).fill(7, MB)
    const { fail, requests } = await open()
    fail('cdn', { do: 'cut', afterBytes: MB })
    fail('cdn', { do: 'replace', content: other })
    // The replaced file is wrong as a whole, so it is thrown away and fetched once more, right this time.
    expect(await pull()).toMatchObject({ weights: { sha256: sha256(chat) } })
    expect(requests.filter((request) => request.server === 'cdn')[1]?.headers['if-range']).toMatch(/^"[0-9a-f]{32}"$/)
  })

  test('a store that overlooks If-Range is found out by its tag', async () => {
    const { fail } = await open()
    fail('cdn', { do: 'cut', afterBytes: MB })
    fail('cdn', { do: 'replace', content: Buffer.from(chat).fill(7, MB), ignoresIfRange: true })
    expect(await pull()).toMatchObject({ weights: { sha256: sha256(chat) } })
    expect(downloads().map(({ range }) => range === undefined)).toEqual([true, false, true])
  })

  test('a partial file without a readable note counts for nothing', async () => {
    const first = await open()
    first.fail('cdn', { do: 'cut', afterBytes: MB })
    first.fail('cdn', { do: 'status', status: 500 }, 5)
    await expect(pull()).rejects.toThrow('did not arrive')
    await first.close()
    // The note says what the partial file is the beginning of.
    const folder = join(dirs.pulled, REPO, sha256(chat).slice(0, 12))
    await writeFile(join(folder, `${FILE}.partial.json`), '{"repo":')
    await open()
    expect(await pull()).toMatchObject({ weights: { sha256: sha256(chat) } })
    expect(downloads()).toEqual([{ range: undefined }])
  })

  test('a kept part that was damaged on the disk costs one more transfer, and no more', async () => {
    const { fail } = await open()
    fail('cdn', { do: 'cut', afterBytes: 2 * MB })
    fail('cdn', { do: 'status', status: 500 }, 5)
    await expect(pull()).rejects.toThrow('did not arrive')
    const partial = join(dirs.pulled, REPO, sha256(chat).slice(0, 12), `${FILE}.partial`)
    const { size } = await stat(partial)
    await truncate(partial, size - 1000)
    await truncate(partial, size) // a hole, as after a power cut
    expect(await pull()).toMatchObject({ weights: { sha256: sha256(chat) } })
  })
})

describe('what is not the right file is never kept', () => {
  test('a flipped byte is found by the checksum, and the file fetched again', async () => {
    const { fail } = await open()
    fail('cdn', { do: 'corrupt', at: 2 * MB })
    expect(await pull()).toMatchObject({ weights: { sha256: sha256(chat) } })
    expect(downloads()).toHaveLength(2)
  })

  test('a checksum that is wrong twice is an error with both, and leaves nothing', async () => {
    const wrong = 'f'.repeat(64)
    await open({ claims: { [FILE]: { sha256: wrong } } })
    await expect(pull()).rejects.toThrow(
      new RegExp(`SHA-256 is ${sha256(chat)}, the hub names ${wrong}\\. It arrived 2 times like this and was thrown away\\.`),
    )
    expect(await kept()).toEqual([])
  })

  test('more bytes than the file should have', async () => {
    const { fail } = await open()
    fail('cdn', { do: 'overflow', extraBytes: 10 }, 6)
    await expect(pull()).rejects.toThrow(/sends \d+ bytes for .*, which should have \d+/)
    expect(await kept()).toEqual([])
    for (let time = 0; time < 6; time += 1) fail('cdn', { do: 'overflow', extraBytes: 10, unsaid: true })
    await expect(pull()).rejects.toThrow(/more than the \d+ bytes of .* arrive/)
    expect(await kept()).toEqual([])
  })

  test('a file that ends in .gguf and is none', async () => {
    await open({ files: { [FILE]: Buffer.from('<html>please sign in</html>'.repeat(100)) } })
    await expect(pull()).rejects.toThrow(`${REPO}:${FILE} is not a GGUF file: it does not begin with "GGUF".`)
    expect(await kept()).toEqual([])
  })

  test('a file that the hub itself has only half of', async () => {
    await open({ files: { [FILE]: chat.subarray(0, 2 * MB) } })
    await expect(pull()).rejects.toThrow(/is not complete: its tensors need \d+ bytes and it has 2097152/)
    expect(await kept()).toEqual([])
  })

  test('a part that belongs to another model', async () => {
    await open({ files: { 'm-00001-of-00002.gguf': splitPart(chat, 0, 2), 'm-00002-of-00002.gguf': splitPart(chat, 0, 2) } })
    await expect(pull()).rejects.toThrow('is part 1 of 2 by its header, and part 2 of 2 by its name')
  })

  test('a file that has no room, said with both numbers and before anything is fetched', async () => {
    await open({ claims: { [FILE]: { size: 2 ** 52 } } })
    await expect(pull()).rejects.toThrow(
      /not enough space in .*: 4\.5 PB are needed and 268 MB shall stay free, \d+(\.\d)? [kMGTP]?B are free/,
    )
    expect(downloads()).toEqual([])
    expect(await kept()).toEqual([])
  })
})

describe('the token is for the hub alone', () => {
  test('it opens a gated repository, and the store never sees it', async () => {
    const { token, requests } = await open({ gated: true })
    expect(await pull({ token })).toMatchObject({ fetched: true })
    expect(requests.map((request) => [request.server, request.headers.authorization])).toEqual([
      ['api', `Bearer ${token}`],
      ['resolve', `Bearer ${token}`],
      ['cdn', undefined],
    ])
  })

  test('it is in no error and no file', async () => {
    const { fail } = await open()
    fail('cdn', { do: 'cut', afterBytes: MB })
    fail('cdn', { do: 'status', status: 500 }, 5)
    const error = await pull({ token: 'hf_very_secret' }).catch((thrown: unknown) => thrown)
    expect(String(error)).not.toContain('hf_very_secret')
    expect(String(error)).not.toContain('signature=')
    const note = join(dirs.pulled, REPO, sha256(chat).slice(0, 12), `${FILE}.partial.json`)
    expect(await readFile(note, 'utf8')).not.toMatch(/hf_very_secret|signature/)
  })
})

describe('what the hub refuses is said in a sentence that helps', () => {
  test('a gated repository without a token', async () => {
    const { url } = await open({ gated: true })
    await expect(pull()).rejects.toThrow(
      `${REPO} is gated: accept its terms at ${url}/${REPO}, make a token there, and set HF_TOKEN to it.`,
    )
    expect(await kept()).toEqual([])
  })

  test('a gated repository with a token that does not open it', async () => {
    await open({ gated: true })
    await expect(pull({ token: 'hf_other' })).rejects.toThrow(/is gated and HF_TOKEN does not open it/)
  })

  test('a name that strangers are not told about', async () => {
    await open()
    await expect(pull({ reference: 'acme/none' })).rejects.toThrow(/there is no such repository, or it is private or gated.*set HF_TOKEN/)
  })

  test('a name that does not exist', async () => {
    const { token, url } = await open()
    await expect(pull({ reference: 'acme/none', token })).rejects.toThrow(`The hub at ${url} has no repository acme/none.`)
  })

  test('a revision that does not exist', async () => {
    await open()
    await expect(pull({ revision: 'v9' })).rejects.toThrow(`${REPO} has no revision v9.`)
  })

  test('a file that does not exist, with those that do', async () => {
    await open()
    await expect(pull({ reference: `${REPO}:other.gguf` })).rejects.toThrow(`${REPO} has no file other.gguf. It has:\n  ${REPO}:${FILE}`)
  })

  test('a hub that cannot be reached is named, and what else can be done', async () => {
    const free = createServer()
    const port = await new Promise<number>((resolve) =>
      free.listen(0, '127.0.0.1', () => resolve((free.address() as { port: number }).port)),
    )
    await new Promise((resolve) => free.close(resolve))
    await expect(pull({ endpoint: `http://127.0.0.1:${port}` })).rejects.toThrow(
      new RegExp(`The hub at http://127\\.0\\.0\\.1:${port} cannot be reached: .*ECONNREFUSED.*HF_ENDPOINT.*pull \\./model\\.gguf`),
    )
  })

  test('something that is no hub', async () => {
    const { fail, url } = await open()
    fail('api', { do: 'status', status: 200, body: '<html>intranet</html>' })
    await expect(pull()).rejects.toThrow(`${url} does not answer like a hub`)
  })

  test('redirects without end', async () => {
    const { fail } = await open()
    fail('resolve', { do: 'loop' })
    await expect(pull()).rejects.toThrow('sent us on more than 8 times')
  })

  test('a redirect out of the web', async () => {
    for (const location of ['file:///etc/passwd', 'ftp://example.org/x', 'javascript:0']) {
      const opened = await open()
      opened.fail('resolve', { do: 'redirect', location })
      await expect(pull()).rejects.toThrow(/sent us on to an address of kind (file|ftp|javascript):/)
      await opened.close()
    }
  })

  test('a repository without a model for us', async () => {
    await open({ files: { 'model.safetensors': Buffer.from('x'), 'mmproj-F16.gguf': Buffer.from('x') } })
    await expect(pull()).rejects.toThrow(/has no GGUF file; it holds safetensors.*-GGUF/)
  })

  test('names of files that leave the folder are not looked at', async () => {
    await open({ files: { '../../evil-Q4_0.gguf': chat, '/etc/evil.gguf': chat, [FILE]: chat } })
    const pulled = await pull()
    expect(pulled.found.files).toEqual([FILE])
    await expect(pull({ reference: `${REPO}:../../evil-Q4_0.gguf` })).rejects.toThrow('has no file ../../evil-Q4_0.gguf')
  })
})

describe('two pulls at once', () => {
  test('of the same file: the second is told who fetches it, and the first ends well', async () => {
    const opened = await open()
    let go: () => void = () => undefined
    const gate = new Promise<void>((resolve) => {
      go = resolve
    })
    opened.hold = () => gate
    const first = pull()
    await opened.until((request) => request.server === 'cdn')
    await expect(pull()).rejects.toThrow(new RegExp(`is being fetched by another command already \\(process ${process.pid}\\)`))
    go()
    expect(await first).toMatchObject({ fetched: true })
    expect(await pull()).toMatchObject({ fetched: false })
    expect(await kept()).toEqual([FILE])
  })

  test('of different files do not wait for each other', async () => {
    await open({ files: { 'a-Q8_0.gguf': chat, 'b-F16.gguf': embed } })
    const [a, b] = await Promise.all([pull({ reference: `${REPO}:a-Q8_0.gguf` }), pull({ reference: `${REPO}:b-F16.gguf` })])
    expect([a.weights.sha256, b.weights.sha256]).toEqual([sha256(chat), sha256(embed)])
  })

  test('a lock of a process that is gone holds nobody up', async () => {
    await open()
    const folder = join(dirs.pulled, REPO, sha256(chat).slice(0, 12))
    await mkdir(folder, { recursive: true })
    // The same process id as ours, as the next process in a container has it, with a token that is not ours.
    const left = { token: 'gone', pid: process.pid, mark: 'started long ago', what: 'it', since: 'then' }
    await writeFile(join(folder, `${FILE}.lock`), JSON.stringify(left))
    expect(await pull()).toMatchObject({ fetched: true })
    expect(await kept()).toEqual([FILE])
  })
})

describe('a file of this machine', () => {
  test('is copied, read and named', async () => {
    const path = join(dir, 'My Model-Q8_0.gguf')
    await copyFile(CHAT_FILE, path)
    const pulled = await pull({ reference: path })
    expect(pulled).toMatchObject({
      fetched: true,
      found: { name: 'my-model', ownedBy: 'local', source: path },
      weights: { sha256: sha256(chat), bytes: chat.length },
    })
    expect(pulled.weights.path).toBe(`pulled:local/${sha256(chat).slice(0, 12)}/My Model-Q8_0.gguf`)
    expect(await kept()).toEqual(['My Model-Q8_0.gguf'])
  })

  test('may stay where it is', async () => {
    const path = join(dir, 'stay.gguf')
    await copyFile(CHAT_FILE, path)
    expect(await pull({ reference: path, inPlace: true })).toMatchObject({ fetched: false, weights: { path, sha256: sha256(chat) } })
    expect(await kept()).toEqual([])
    expect(await deletePulled(dirs, path)).toBe(false)
    expect(await stat(path)).toBeTruthy()
  })

  test('of the repository is used there, and found again when the repository moves', async () => {
    expect(await pull({ reference: CHAT_FILE })).toMatchObject({ weights: { path: 'builtin:tiny-chat/tiny-chat-q8_0.gguf' } })
  })

  test('that says nothing by its name takes the name it has inside', async () => {
    const path = join(dir, 'model.gguf')
    await copyFile(CHAT_FILE, path)
    expect((await pull({ reference: path })).found.name).toBe('tiny-chat')
  })

  test('that is not there, or is no model', async () => {
    await expect(pull({ reference: './none.gguf' })).rejects.toThrow(/There is no file .*none\.gguf\./)
    await expect(pull({ reference: 'llama' })).rejects.toThrow('For a model of the hub write org/repo')
    const path = join(dir, 'text.gguf')
    await writeFile(path, 'this is not a model, whatever its name says')
    await expect(pull({ reference: path })).rejects.toThrow('does not begin with "GGUF"')
    expect(await kept()).toEqual([])
  })
})

describe('the catalogue entry', () => {
  test('has what the file says and modest defaults', async () => {
    await open()
    const pulled = await pull()
    expect(pulledToModel(pulled, {})).toEqual({
      name: 'tiny-chat',
      ownedBy: 'acme',
      type: 'chat',
      contextTokens: 2048,
      maxOutputTokens: 1024,
      dimensions: null,
      features: { tools: true, structuredOutput: true, reasoning: false, vision: false },
      licence: 'apache-2.0',
      source: `${REPO}@c0ffee00c0ff:${FILE}`,
      weights: pulled.weights,
      price: { input: 0n, output: 0n },
    })
    const large = { ...pulled, gguf: { ...pulled.gguf, contextTokens: 131_072 } }
    expect(pulledToModel(large, {})).toMatchObject({ contextTokens: 8192, maxOutputTokens: 4096 })
    expect(
      pulledToModel(large, { contextTokens: 32_768, maxOutputTokens: 16_384, name: 'mine', priceInput: '0.15', priceOutput: '0.35' }),
    ).toMatchObject({
      name: 'mine',
      contextTokens: 32_768,
      maxOutputTokens: 16_384,
      price: { input: 150_000n, output: 350_000n },
    })
  })

  test('cannot have a larger window than the model', async () => {
    const pulled = await pull({ reference: CHAT_FILE })
    expect(() => pulledToModel(pulled, { contextTokens: 4096 })).toThrow(
      "The model's own context window is 2048 tokens; --context 4096 is more.",
    )
    expect(() => pulledToModel(pulled, { type: 'embedding', maxOutputTokens: 5 })).toThrow('generates nothing')
    expect(pulledToModel(pulled, { type: 'embedding' })).toMatchObject({ type: 'embedding', dimensions: 192, maxOutputTokens: null })
  })
})

/** A part of a split model: the first carries the original header with the split's keys, the others the split's keys alone. */
const splitPart = (whole: Buffer, index: number, parts: number): Buffer => {
  const entry = (key: string, value: number): Buffer => {
    const bytes = Buffer.alloc(8 + key.length + 4 + 2)
    bytes.writeBigUInt64LE(BigInt(key.length))
    bytes.write(key, 8)
    bytes.writeUInt32LE(2, 8 + key.length)
    bytes.writeUInt16LE(value, 12 + key.length)
    return bytes
  }
  const keys = Buffer.concat([entry('split.no', index), entry('split.count', parts)])
  const head = Buffer.from(whole.subarray(0, 24))
  if (index === 0) {
    head.writeBigUInt64LE(whole.readBigUInt64LE(16) + 2n, 16)
    // The keys make the header longer; data that begins later only makes the file longer.
    return Buffer.concat([head, keys, whole.subarray(24), Buffer.alloc(128)])
  }
  head.writeBigUInt64LE(0n, 8)
  head.writeBigUInt64LE(2n, 16)
  return Buffer.concat([head, keys])
}
