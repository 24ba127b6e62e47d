import { mkdirSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { median, type Row } from '../measure.ts'
import { bodyOf, closedLoop } from './load.ts'
import { cpuOf, type Parvis, startEngines, startParvis } from './systems.ts'

const CLIENTS_PER_GATEWAY = 32
const BODY_BYTES = 1_000
/** So little of a core each that engine, database and whoever sends the load have more than they need, also of two cores. */
const SHARE = 0.2
const PERIOD_MICROS = 10_000
const HELD = 0.85

const GROUPS = '/sys/fs/cgroup/cpu'

/** Gives each process its part of a core and no more; undefined, and nothing changed, where we may not. */
const limitCpu = (pids: readonly number[], share: number): { free(): void } | undefined => {
  const made: { readonly pid: number; readonly group: string }[] = []
  const free = (): void => {
    for (const { pid, group } of made.splice(0)) {
      try {
        writeFileSync(join(GROUPS, 'cgroup.procs'), String(pid))
      } catch {
        // It has ended, and is in no group any more.
      }
      rmdirSync(group)
    }
  }
  try {
    for (const pid of pids) {
      const group = join(GROUPS, `parvis-bench-${pid}`)
      mkdirSync(group)
      made.push({ pid, group })
      writeFileSync(join(group, 'cpu.cfs_period_us'), String(PERIOD_MICROS))
      writeFileSync(join(group, 'cpu.cfs_quota_us'), String(PERIOD_MICROS * share))
      writeFileSync(join(group, 'cgroup.procs'), String(pid))
    }
  } catch {
    free()
    return undefined
  }
  return { free }
}

type Taken = { readonly perSecond: number; readonly gatewayMicros: number; readonly houseMicros: number }

/** Servers that serve side by side: one with its gateways, or several of one process each. */
type Setup = { readonly name: string; readonly gateways: number; readonly servers: readonly Parvis[]; readonly taken: Taken[] }

const measure = async ({ servers }: Pick<Setup, 'servers'>, requestsOfEach: number): Promise<Taken> => {
  const gateways = servers.flatMap(({ pids }) => pids)
  // With one gateway it is the house.
  const houses = servers.map(({ pid }) => pid).filter((pid) => !gateways.includes(pid))
  const before = { gateways: cpuOf(gateways), houses: cpuOf(houses) }
  const requests = requestsOfEach * gateways.length
  const startedAtMs = performance.now()
  await Promise.all(
    servers.map(({ whole, pids }) =>
      closedLoop(whole, bodyOf('mock', BODY_BYTES, false), CLIENTS_PER_GATEWAY * pids.length, requestsOfEach * pids.length),
    ),
  )
  return {
    perSecond: (requests / (performance.now() - startedAtMs)) * 1000,
    gatewayMicros: (cpuOf(gateways) - before.gateways) / requests,
    houseMicros: (cpuOf(houses) - before.houses) / requests,
  }
}

/**
 * What N gateways serve beside one, in turns, in one run; and beside both, what N servers do that have nothing to do with each other, since
 * processes that share cores and caches with each other and with whoever sends the load cost each other something, whatever stands behind which port.
 * Each gateway gets the same small part of a core, so that a machine with two is enough.
 */
export const benchGateways = async (quick: boolean): Promise<Row[]> => {
  const counts = quick ? [2] : [2, 3]
  const engines = await startEngines(200, 5)
  const started: Parvis[] = []
  let limited: { free(): void } | undefined
  const begin = async (gateways: number): Promise<Parvis> => {
    const server = await startParvis(engines, { gateways })
    started.push(server)
    // V8 settles after some thousand requests, of each gateway.
    await measure({ servers: [server] }, quick ? 1_000 : 20_000)
    return server
  }
  try {
    const alone: Parvis[] = []
    while (alone.length < Math.max(...counts)) alone.push(await begin(1))
    const one: Setup = { name: 'one', gateways: 1, servers: alone.slice(0, 1), taken: [] }
    const setups: Setup[] = [one]
    for (const gateways of counts) {
      setups.push({ name: `together ${gateways}`, gateways, servers: [await begin(gateways)], taken: [] })
      setups.push({ name: `apart ${gateways}`, gateways, servers: alone.slice(0, gateways), taken: [] })
    }
    // All together or none: with only some of them limited, no two could be compared.
    limited = limitCpu(
      started.flatMap(({ pids }) => pids),
      SHARE,
    )
    const rounds = quick ? 3 : 9
    for (let round = 0; round < rounds; round += 1) {
      for (const setup of round % 2 === 0 ? setups : setups.toReversed()) setup.taken.push(await measure(setup, quick ? 600 : 2_500))
    }

    const of = (name: string): readonly Taken[] => setups.find((setup) => setup.name === name)?.taken ?? []
    /** Round by round: what disturbed one of the two has mostly disturbed the other, too. */
    const against = (name: string, other: string, figure: 'perSecond' | 'gatewayMicros'): number =>
      median(of(name).map((taken, round) => taken[figure] / (of(other)[round]?.[figure] ?? Number.NaN)))
    const middle = (name: string, figure: keyof Taken): number => median(of(name).map((taken) => taken[figure]))
    const isLimited = limited !== undefined
    const rows: Row[] = []
    const part = isLimited ? `${SHARE * 100} % of a core, which does the work of the house, too` : 'as much of the cores as there is'
    rows.push({ what: 'one gateway', value: middle('one', 'perSecond'), unit: '/s', beside: `JSON, 1 KB in, 2 KB out; ${part}` })
    for (const gateways of counts) {
      const [together, apart] = [`together ${gateways}`, `apart ${gateways}`]
      if (isLimited) {
        const times = against(together, 'one', 'perSecond')
        rows.push({
          what: `${gateways} × one gateway, beside ${gateways} gateways`,
          value: gateways / times,
          unit: '×',
          beside: `they serve ${times.toFixed(2)} × what one serves (held ≥ ${(HELD * gateways).toFixed(2)} ×), ${gateways} servers apart ${against(apart, 'one', 'perSecond').toFixed(2)} ×; ${rounds} rounds in turns`,
          cliff: { above: 2, why: 'each gateway must bring nearly what one alone serves' },
        })
      }
      rows.push({
        what: `CPU of ${gateways} gateways, per request`,
        value: middle(together, 'gatewayMicros'),
        unit: 'µs',
        beside: `of one ${middle('one', 'gatewayMicros').toFixed(0)} µs, ${against(together, 'one', 'gatewayMicros').toFixed(2)} ×; of ${gateways} servers apart ${middle(apart, 'gatewayMicros').toFixed(0)} µs, ${against(apart, 'one', 'gatewayMicros').toFixed(2)} ×`,
      })
      rows.push({
        what: '  of the house beside them',
        value: middle(together, 'houseMicros'),
        unit: 'µs',
        beside: `per request; ${CLIENTS_PER_GATEWAY} connections to a gateway, made anew each round`,
        cliff: { above: 100, why: 'a request is nothing that the house has to do with' },
      })
    }
    if (!isLimited) rows.push({ what: 'throughput', value: Number.NaN, unit: '', beside: `not measured: ${GROUPS} cannot be written` })
    return rows
  } finally {
    limited?.free()
    for (const server of started.toReversed()) await server.stop()
    await engines.stop()
  }
}
