import { once } from 'node:events'
import { createServer, type IncomingMessage, type RequestListener, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { brotliCompressSync, gzipSync } from 'node:zlib'
import { afterEach, describe, expect, test } from 'vitest'
import { isRange, mayReach } from './addresses.ts'
import { type FetchOptions, guardedFetch } from './guarded-fetch.ts'

const closers: (() => void)[] = []
afterEach(() => {
  for (const close of closers.splice(0)) close()
})

const serve = async (listener: RequestListener, host = '127.0.0.1') => {
  const asked: { url: string; method: string; headers: IncomingMessage['headers']; body: string }[] = []
  const server = createServer((request, response) => {
    let body = ''
    request.on('data', (chunk: Buffer) => {
      body += chunk.toString()
    })
    request.on('end', () => {
      asked.push({ url: request.url ?? '', method: request.method ?? '', headers: request.headers, body })
      listener(request, response)
    })
  })
  server.listen(0, host)
  await once(server, 'listening')
  closers.push(() => {
    server.close()
    server.closeAllConnections()
  })
  const { port } = server.address() as AddressInfo
  return { url: `http://${host.includes(':') ? `[${host}]` : host}:${port}`, port, asked }
}

const LOOPBACK = ['127.0.0.0/8', '::1/128']
const fetchIt = (url: string, options: Partial<FetchOptions> = {}) =>
  guardedFetch(url, { maxBytes: 10_000, timeMs: 5_000, signal: new AbortController().signal, allow: LOOPBACK, ...options })
const reasonOf = async (url: string, options: Partial<FetchOptions> = {}): Promise<string> => {
  const fetched = await fetchIt(url, options)
  return fetched.ok ? `answered ${fetched.status}` : fetched.reason
}
const say =
  (text: string | Buffer, headers: Record<string, string> = {}): RequestListener =>
  (_request, response) =>
    void response.writeHead(200, headers).end(text)
const redirectTo =
  (location: string, status = 302): RequestListener =>
  (_request, response) =>
    void response.writeHead(status, { location }).end()

const NOT_PUBLIC = 'its address is not on the public internet'

describe('which addresses may be reached', () => {
  test.each([
    '8.8.8.8',
    '1.1.1.1',
    '172.15.255.255',
    '172.32.0.0',
    '100.63.255.255',
    '100.128.0.0',
    '2606:4700::1111',
    '2a00:1450::1',
    '::ffff:8.8.8.8',
    '64:ff9b::808:808',
  ])('%s may', (address) => {
    expect(mayReach([])(address)).toBe(true)
  })

  test.each([
    '0.0.0.0',
    '10.1.2.3',
    '100.64.0.1',
    '100.100.100.200',
    '127.0.0.1',
    '127.255.255.255',
    '169.254.169.254',
    '172.16.0.1',
    '172.31.255.255',
    '192.0.0.192',
    '192.168.1.1',
    '198.18.0.1',
    '224.0.0.1',
    '255.255.255.255',
    '168.63.129.16',
    '::',
    '::1',
    '::127.0.0.1',
    '::ffff:127.0.0.1',
    '::ffff:7f00:1',
    '::ffff:0:127.0.0.1',
    '::ffff:169.254.169.254',
    '64:ff9b::7f00:1',
    '64:ff9b::a9fe:a9fe',
    '64:ff9b:1::808:808',
    '2002:7f00:1::',
    '2002:808:808::',
    '2001::1',
    '2001:db8::1',
    'fc00::1',
    'fd00:ec2::254',
    'fe80::1',
    'fe80::1%eth0',
    'fec0::1',
    'ff02::1',
    '4000::1',
    'localhost',
    '',
  ])('%s may not', (address) => {
    expect(mayReach([])(address)).toBe(false)
  })

  test('a range that the operator allows is open, and nothing beside it', () => {
    const may = mayReach(['10.1.0.0/16', 'fd00::/8', '192.168.7.9'])
    expect(['10.1.255.255', '::ffff:10.1.0.1', 'fd12::1', '192.168.7.9'].map(may)).toEqual([true, true, true, true])
    expect(['10.2.0.0', 'fc00::1', '192.168.7.10', '127.0.0.1'].map(may)).toEqual([false, false, false, false])
  })

  test('a range is an address with a prefix that fits it', () => {
    expect(['10.0.0.0/8', '10.0.0.1', 'fd00::/8', '::1/128', '0.0.0.0/0'].filter(isRange)).toHaveLength(5)
    expect(['10.0.0.0/33', '10.0.0/8', 'example.com', '::1/129', 'fe80::1%0/64', '10.0.0.0/8/8', '10.0.0.0/', ''].filter(isRange)).toEqual(
      [],
    )
  })
})

describe('what is fetched', () => {
  test('the answer comes with its status, headers and bytes', async () => {
    const server = await serve((_request, response) => void response.writeHead(404, { 'x-said': 'yes' }).end('not here'))
    const fetched = await fetchIt(`${server.url}/a/b?c=d#e`, { headers: { 'x-mine': '1' } })
    expect(fetched).toMatchObject({ ok: true, status: 404, headers: { 'x-said': 'yes' }, body: Buffer.from('not here') })
    expect(server.asked).toMatchObject([{ url: '/a/b?c=d', method: 'GET', headers: { 'x-mine': '1', 'accept-encoding': 'identity' } }])
  })

  test('a POST brings its body', async () => {
    const server = await serve(say('thanks'))
    expect(await reasonOf(server.url, { method: 'POST', body: '{"a":1}', headers: { 'content-type': 'application/json' } })).toBe(
      'answered 200',
    )
    expect(server.asked).toMatchObject([{ method: 'POST', body: '{"a":1}' }])
  })

  test('IPv6 is reached, too', async () => {
    const server = await serve(say('six'), '::1')
    expect(await reasonOf(server.url)).toBe('answered 200')
  })

  test.each([
    ['ftp://example.com/', 'only http and https are fetched'],
    ['file:///etc/passwd', 'only http and https are fetched'],
    ['data:text/plain,a', 'only http and https are fetched'],
    ['gopher://127.0.0.1:6379/', 'only http and https are fetched'],
    ['http://name:word@example.com/', 'a URL with a name or a password in it is not fetched'],
    ['http://name@example.com/', 'a URL with a name or a password in it is not fetched'],
    ['//example.com/', 'it is not a URL'],
    ['not a url', 'it is not a URL'],
    ['http://', 'it is not a URL'],
    [`http://example.com/${'a'.repeat(9_000)}`, 'the URL is too long'],
  ])('%s is not', async (url, reason) => {
    expect(await reasonOf(url)).toBe(reason)
  })

  test.each([
    'http://127.0.0.1:PORT/',
    'http://127.1:PORT/',
    'http://2130706433:PORT/',
    'http://0x7f000001:PORT/',
    'http://0x7f.1:PORT/',
    'http://0177.0.0.1:PORT/',
    'http://017700000001:PORT/',
    'http://127.0.0.1.:PORT/',
    'http://0:PORT/',
    'http://[::1]:PORT/',
    'http://[::ffff:127.0.0.1]:PORT/',
    'http://[::ffff:7f00:1]:PORT/',
    'http://[0:0:0:0:0:ffff:7f00:1]:PORT/',
    'http://[::127.0.0.1]:PORT/',
    'http://[64:ff9b::7f00:1]:PORT/',
    'http://localhost:PORT/',
    'http://①②⑦.⓪.⓪.①:PORT/',
  ])('%s is this machine, however it is written', async (url) => {
    const server = await serve(say('secret'))
    expect(await reasonOf(url.replace('PORT', String(server.port)), { allow: [] })).toBe(NOT_PUBLIC)
    expect(server.asked).toEqual([])
  })
})

describe('names', () => {
  test('the connection goes to the address that was checked, whatever the name server says next', async () => {
    const open = await serve(say('open'), '127.0.0.2')
    const secret = await serve(say('secret'), '127.0.0.1')
    let answers = 0
    const resolve = async () => [{ address: answers++ === 0 ? '127.0.0.2' : '127.0.0.1', family: 4 }]
    const fetched = await fetchIt(`http://rebinding.example:${open.port}/`, { resolve, allow: ['127.0.0.2/32'] })
    expect(fetched).toMatchObject({ ok: true, body: Buffer.from('open') })
    expect(open.asked[0]?.headers.host).toBe(`rebinding.example:${open.port}`)
    expect(answers).toBe(1)
    expect(await reasonOf(`http://rebinding.example:${secret.port}/`, { resolve, allow: ['127.0.0.2/32'] })).toBe(NOT_PUBLIC)
    expect(secret.asked).toEqual([])
  })

  test('one address that is closed closes the name', async () => {
    const resolve = async () => [
      { address: '8.8.8.8', family: 4 },
      { address: '::1', family: 6 },
    ]
    expect(await reasonOf('http://two.example/', { resolve, allow: [] })).toBe(NOT_PUBLIC)
  })

  test('a name that is not there, or not resolved in time, is said to be so', async () => {
    expect(await reasonOf('http://nowhere.example/', { resolve: () => Promise.reject(new Error('ENOTFOUND')) })).toBe(
      'its name cannot be resolved',
    )
    expect(await reasonOf('http://nowhere.example/', { resolve: async () => [] })).toBe('its name cannot be resolved')
    expect(await reasonOf('http://slow.example/', { resolve: () => new Promise(() => {}), timeMs: 50 })).toBe('it took longer than 0.05 s')
  })
})

describe('redirects', () => {
  test('are followed, and a POST becomes a GET where HTTP says so', async () => {
    const end = await serve(say('end'))
    for (const [status, method, body] of [
      [301, 'GET', ''],
      [302, 'GET', ''],
      [303, 'GET', ''],
      [307, 'POST', 'x'],
      [308, 'POST', 'x'],
    ] as const) {
      const start = await serve(redirectTo(`${end.url}/there`, status))
      expect(await reasonOf(start.url, { method: 'POST', body: 'x', headers: { 'x-signature': 'abc' } })).toBe('answered 200')
      expect(end.asked.at(-1)).toMatchObject({ method, body, url: '/there' })
      // What was signed for one server is not shown to another.
      expect(end.asked.at(-1)?.headers).not.toHaveProperty('x-signature')
    }
  })

  test('to an address that is not public are refused, and nobody is asked there', async () => {
    const secret = await serve(say('secret'), '127.0.0.1')
    for (const location of [secret.url, secret.url.replace('127.0.0.1', '0x7f.1'), `http://[::ffff:127.0.0.1]:${secret.port}/`]) {
      const start = await serve(redirectTo(location), '127.0.0.2')
      expect(await reasonOf(start.url, { allow: ['127.0.0.2/32'] })).toBe(NOT_PUBLIC)
    }
    const file = await serve(redirectTo('file:///etc/passwd'), '127.0.0.2')
    expect(await reasonOf(file.url)).toBe('only http and https are fetched')
    const named = await serve(redirectTo('http://name:word@127.0.0.2/'), '127.0.0.2')
    expect(await reasonOf(named.url)).toBe('a URL with a name or a password in it is not fetched')
    expect(secret.asked).toEqual([])
  })

  test('end', async () => {
    const circle = await serve(redirectTo('/again'))
    expect(await reasonOf(circle.url)).toBe('it redirects more than 5 times')
    expect(circle.asked).toHaveLength(6)
    expect(await reasonOf(circle.url, { maxRedirects: 0 })).toBe('answered 302')
  })
})

describe('bounds', () => {
  test('a body that is announced too large, or becomes it, is not read', async () => {
    const announced = await serve(say(Buffer.alloc(10_001)))
    expect(await reasonOf(announced.url)).toBe('it is larger than 10000 bytes')
    let written = 0
    const endless = await serve((_request, response: ServerResponse) => {
      const more = (): void => {
        if (response.destroyed) return
        written += 65_536
        if (response.write(Buffer.alloc(65_536))) setImmediate(more)
        else response.once('drain', more)
      }
      more()
    })
    expect(await reasonOf(endless.url)).toBe('it is larger than 10000 bytes')
    expect(written).toBeLessThan(50_000_000)
    const fits = await serve(say(Buffer.alloc(10_000)))
    expect(await reasonOf(fits.url)).toBe('answered 200')
  })

  test('what is packed is bounded unpacked', async () => {
    for (const [encoding, pack] of [
      ['gzip', gzipSync],
      ['br', brotliCompressSync],
    ] as const) {
      const bomb = await serve(say(pack(Buffer.alloc(5_000_000)), { 'content-encoding': encoding }))
      expect(await reasonOf(bomb.url)).toBe('it is larger than 10000 bytes')
      const small = await serve(say(pack('hello'), { 'content-encoding': encoding }))
      expect(await fetchIt(small.url)).toMatchObject({ ok: true, body: Buffer.from('hello') })
    }
    const twice = await serve(say('x', { 'content-encoding': 'gzip, gzip' }))
    expect(await reasonOf(twice.url)).toBe('it is compressed in a way that is not read')
    const broken = await serve(say('x', { 'content-encoding': 'gzip' }))
    expect(await reasonOf(broken.url)).toBe('it is compressed and cannot be unpacked')
  })

  test('a server that is slow at any point costs no more than the time given', async () => {
    const late = 'it took longer than 0.2 s'
    const silent = await serve(() => {})
    expect(await reasonOf(silent.url, { timeMs: 200 })).toBe(late)
    const halting = await serve((_request, response) => void response.write('a'))
    expect(await reasonOf(halting.url, { timeMs: 200 })).toBe(late)
    // Each of a chain of redirects is quick enough; all of them together are not.
    const chain = await serve((_request, response) => void setTimeout(() => response.writeHead(302, { location: '/' }).end(), 80))
    expect(await reasonOf(chain.url, { timeMs: 200 })).toBe(late)
  })

  test('nobody waits on after a caller who has gone', async () => {
    const silent = await serve(() => abort.abort())
    const abort = new AbortController()
    expect(await reasonOf(silent.url, { signal: abort.signal })).toBe('nobody waits for it any more')
    expect(await reasonOf(silent.url, { signal: AbortSignal.abort() })).toBe('nobody waits for it any more')
  })

  test('nobody there, and somebody who does not speak HTTP, are no fault of ours', async () => {
    const reason = 'the server cannot be reached or does not answer in HTTP'
    expect(await reasonOf('http://127.0.0.1:1/')).toBe(reason)
    const cut = await serve((request) => void request.socket.end('220 mail ready\r\n'))
    expect(await reasonOf(cut.url)).toBe(reason)
  })
})
