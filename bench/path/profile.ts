import { readFileSync } from 'node:fs'
import { WebSocket } from 'undici'
import { type Child, cpuMicros, freePort, GATEWAY_CORE, pin, type Row, until } from '../measure.ts'
import { bodyOf, closedLoop, type Target } from './load.ts'
import { startBareOn, startEngines, startParvis, wholeTarget } from './systems.ts'

const CLIENTS = 32
const BODY_BYTES = 1_000
const LEAST_PART = 0.01
/** Often enough for a thousandth of the whole, and seldom enough not to be seen in it. */
const CPU_EVERY_MICROS = 200
const HEAP_EVERY_BYTES = 16 * 1024

type Frame = { readonly functionName: string; readonly url: string }
type CpuProfile = {
  readonly nodes: readonly { readonly id: number; readonly callFrame: Frame; readonly children?: readonly number[] }[]
  readonly samples: readonly number[]
  readonly timeDeltas: readonly number[]
}
type HeapNode = { readonly callFrame: Frame; readonly selfSize: number; readonly children: readonly HeapNode[] }

/** Of one request: all of it, and which part of the program has how much. */
type Split = { readonly whole: number; readonly of: ReadonlyMap<string, number> }

/** Microseconds, of which the main thread alone has `main`, and bytes. */
type Spent = { readonly time: Split; readonly main: number; readonly garbage: Split }

/** Where the time of a JSON request goes, and what it leaves behind for the collector, by V8's own profilers, beside the bare proxy. */
export const benchProfile = async (quick: boolean): Promise<Row[]> => {
  const engines = await startEngines(200, 5)
  const [ourDoor, bareDoor] = [await freePort(), await freePort()]
  // Before ours: V8 has as many helpers as a process has cores when it begins, and we have but one behind it.
  const bare = await startBareOn(engines.whole.port, inspect(bareDoor))
  pin([bare.pid], GATEWAY_CORE)
  const parvis = await startParvis(engines, { nodeArgs: inspect(ourDoor) })
  const requests = quick ? 5_000 : 20_000
  try {
    const ours = await spentBy(parvis, ourDoor, parvis.whole, requests)
    const theirs = await spentBy(bare, bareDoor, wholeTarget(bare.port), requests)
    return [
      ...rowsOf('time', 'µs', ours.time, theirs.time),
      {
        what: 'time: other threads',
        value: ours.time.whole - ours.main,
        unit: 'µs',
        beside: `bare ${(theirs.time.whole - theirs.main).toFixed(1)} µs; collector, compiler, disk`,
      },
      ...rowsOf('garbage', 'bytes', ours.garbage, theirs.garbage),
    ]
  } finally {
    await parvis.stop()
    await bare.stop()
    await engines.stop()
  }
}

const rowsOf = (what: string, unit: string, ours: Split, theirs: Split): Row[] => [
  { what: `${what} of a request`, value: ours.whole, unit, beside: `bare ${theirs.whole.toFixed(1)} ${unit}; ${CLIENTS} clients` },
  ...[...ours.of]
    .filter(([, value]) => value >= ours.whole * LEAST_PART)
    .toSorted(([, a], [, b]) => b - a)
    .map(([part, value]) => ({ what: `${what}: ${part}`, value, unit, beside: `bare ${(theirs.of.get(part) ?? 0).toFixed(1)} ${unit}` })),
]

const inspect = (door: number): string[] => [`--inspect=127.0.0.1:${door}`, '--inspect-publish-uid=http']

const spentBy = async ({ pid }: Pick<Child, 'pid'>, door: number, target: Target, requests: number): Promise<Spent> => {
  const body = bodyOf('mock', BODY_BYTES, false)
  const load = (): Promise<unknown> => closedLoop(target, body, CLIENTS, requests)
  const inspector = await openInspector(door)
  try {
    await load()
    const mainBefore = mainMicros(pid)
    const before = cpuMicros(pid)
    await load()
    const whole = (cpuMicros(pid) - before) / requests
    const main = (mainMicros(pid) - mainBefore) / requests

    await inspector.ask('Profiler.enable')
    await inspector.ask('Profiler.setSamplingInterval', { interval: CPU_EVERY_MICROS })
    await inspector.ask('Profiler.start')
    await load()
    const { profile } = (await inspector.ask('Profiler.stop')) as { profile: CpuProfile }
    await inspector.ask('Profiler.disable')
    const time = { whole, of: new Map([...sharesOf(profile)].map(([part, share]) => [part, share * main] as const)) }

    await inspector.ask('HeapProfiler.startSampling', {
      samplingInterval: HEAP_EVERY_BYTES,
      includeObjectsCollectedByMajorGC: true,
      includeObjectsCollectedByMinorGC: true,
    })
    await load()
    const { profile: heap } = (await inspector.ask('HeapProfiler.stopSampling')) as { profile: { head: HeapNode } }
    const bytesOf = new Map<string, number>()
    addBytes(heap.head, 'node', bytesOf, requests)
    const garbage = { whole: [...bytesOf.values()].reduce((sum, bytes) => sum + bytes, 0), of: bytesOf }
    return { time, main, garbage }
  } finally {
    inspector.close()
  }
}

/** Of the main thread alone: V8's profiler looks at no other. */
const mainMicros = (pid: number): number => Number(readFileSync(`/proc/${pid}/task/${pid}/schedstat`, 'utf8').split(' ')[0]) / 1000

/**
 * Each sample goes to the part that ran, or that called what has no place of its own; idle time to nobody. Samples are of the clock: while another thread has
 * the core, whatever the main one had begun is what counts, so a write to the disk is more than its start.
 */
const sharesOf = ({ nodes, samples, timeDeltas }: CpuProfile): Map<string, number> => {
  const parents = new Map(nodes.flatMap(({ id, children }) => (children ?? []).map((child) => [child, id] as const)))
  const frames = new Map(nodes.map(({ id, callFrame }) => [id, callFrame] as const))
  const partOf = (node: number): string | undefined => {
    const leaf = frames.get(node)
    if (leaf === undefined || leaf.functionName === '(idle)') return undefined
    if (leaf.functionName === '(garbage collector)') return 'collector, on the main thread'
    if (leaf.functionName === '(program)' || leaf.functionName === '(root)') return 'native code that V8 does not name'
    if (leaf.url === '' && /^writev?(?:Buffer|Latin1String|Utf8String)?$/.test(leaf.functionName) && !isFile(node))
      return 'writes to sockets'
    for (let at: number | undefined = node; at !== undefined; at = parents.get(at)) {
      const part = partOfUrl(frames.get(at)?.url ?? '')
      if (part !== undefined) return part
    }
    return 'node'
  }
  const isFile = (node: number): boolean => {
    for (let at: number | undefined = node; at !== undefined; at = parents.get(at))
      if (frames.get(at)?.url.startsWith('node:internal/fs') === true) return true
    return false
  }
  const micros = new Map<string, number>()
  let total = 0
  for (const [index, node] of samples.entries()) {
    const part = partOf(node)
    if (part === undefined) continue
    const delta = timeDeltas[index] ?? 0
    total += delta
    micros.set(part, (micros.get(part) ?? 0) + delta)
  }
  return new Map([...micros].map(([part, spent]) => [part, spent / total] as const))
}

const addBytes = (node: HeapNode, above: string, bytesOf: Map<string, number>, requests: number): void => {
  const part = partOfUrl(node.callFrame.url) ?? above
  bytesOf.set(part, (bytesOf.get(part) ?? 0) + node.selfSize / requests)
  for (const child of node.children) addBytes(child, part, bytesOf, requests)
}

/** A room of the server, a package, or what of Node it is. */
const partOfUrl = (url: string): string | undefined => {
  if (url === '') return undefined
  const [, room] = /\/apps\/server\/dist\/([^/]+)/.exec(url) ?? []
  if (room !== undefined) return room.replace(/\.js$/, '')
  const [, name] = /.*\/node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(url) ?? []
  if (name !== undefined) return name
  if (url.startsWith('wasm:')) return 'undici'
  if (url.startsWith('node:internal/fs')) return 'node:fs'
  if (url.startsWith('node:internal/crypto')) return 'node:crypto'
  if (url.startsWith('node:')) return 'node'
  return url.slice(url.lastIndexOf('/') + 1)
}

const ANSWER_LIMIT_MS = 60_000

/** A process' own inspector: asked by name, answered by number. */
const openInspector = async (door: number) => {
  let url = ''
  await until('the inspector answers', async () => {
    const [target] = (await (await fetch(`http://127.0.0.1:${door}/json/list`)).json()) as { webSocketDebuggerUrl: string }[]
    url = target?.webSocketDebuggerUrl ?? ''
    return url !== ''
  })
  const socket = new WebSocket(url)
  await new Promise((resolve, reject) => {
    socket.addEventListener('open', resolve, { once: true })
    socket.addEventListener('error', () => reject(new Error('the inspector does not answer')), { once: true })
  })
  const waiting = new Map<number, (result: unknown) => void>()
  socket.addEventListener('message', ({ data }) => {
    const { id, result } = JSON.parse(String(data)) as { id?: number; result?: unknown }
    if (id === undefined) return
    waiting.get(id)?.(result)
    waiting.delete(id)
  })
  let asked = 0
  return {
    ask: (method: string, params: object = {}): Promise<unknown> =>
      new Promise((resolve, reject) => {
        const id = (asked += 1)
        const late = setTimeout(() => reject(new Error(`${method} was not answered`)), ANSWER_LIMIT_MS)
        waiting.set(id, (result) => {
          clearTimeout(late)
          resolve(result)
        })
        socket.send(JSON.stringify({ id, method, params }))
      }),
    close: () => socket.close(),
  }
}
