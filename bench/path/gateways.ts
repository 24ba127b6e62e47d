import { mkdirSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { cpuMicros, median, type Row } from '../measure.ts'
import { bodyOf, closedLoop } from './load.ts'
import { cpuOf, type Parvis, startEngines, startParvis } from './systems.ts'

const CLIENTS_PER_GATEWAY = 32
const BODY_BYTES = 1_000
/** So little of a core each that engine, database and whoever sends the load have more than they need, also of two cores. */
const SHARE = 0.2
const PERIOD_MICROS = 10_000
const HELD = 0.85

const GROUPS = '/sys/fs/cgroup/cpu'

/** Gives each process its part of a core and no more; undefined where we may not. */
const limitCpu = (pids: readonly number[], share: number): { free(): void } | undefined => {
  const groups = pids.map((pid) => join(GROUPS, `parvis-bench-${pid}`))
  try {
    for (const [index, group] of groups.entries()) {
      mkdirSync(group)
      writeFileSync(join(group, 'cpu.cfs_period_us'), String(PERIOD_MICROS))
      writeFileSync(join(group, 'cpu.cfs_quota_us'), String(PERIOD_MICROS * share))
      writeFileSync(join(group, 'cgroup.procs'), String(pids[index]))
    }
  } catch {
    return undefined
  }
  return {
    free: () => {
      for (const pid of pids) writeFileSync(join(GROUPS, 'cgroup.procs'), String(pid))
      for (const group of groups) rmdirSync(group)
    },
  }
}

type Taken = { readonly perSecond: number; readonly gatewayMicros: number; readonly houseMicros: number }

const measure = async ({ whole, pids, pid }: Parvis, requests: number): Promise<Taken> => {
  // With one gateway it is the house.
  const house = pids.includes(pid) ? 0 : cpuMicros(pid)
  const before = cpuOf(pids)
  const startedAtMs = performance.now()
  await closedLoop(whole, bodyOf('mock', BODY_BYTES, false), CLIENTS_PER_GATEWAY * pids.length, requests)
  return {
    perSecond: (requests / (performance.now() - startedAtMs)) * 1000,
    gatewayMicros: (cpuOf(pids) - before) / requests,
    houseMicros: pids.includes(pid) ? 0 : (cpuMicros(pid) - house) / requests,
  }
}

/**
 * What N gateways serve beside one, in turns, in one run. Where a machine has few cores, each gateway gets the same small part of one: what
 * they lose by standing behind one port, and by working on one database, is the same as with a core each. What they lose to each other's caches is not
 * in it.
 */
export const benchGateways = async (quick: boolean): Promise<Row[]> => {
  const counts = quick ? [1, 2] : [1, 2, 3]
  const engines = await startEngines(200, 5)
  const systems: { readonly gateways: number; readonly parvis: Parvis; readonly taken: Taken[]; limited?: { free(): void } | undefined }[] =
    []
  try {
    for (const gateways of counts) systems.push({ gateways, parvis: await startParvis(engines, { gateways }), taken: [] })
    // V8 settles after some thousand requests, of each gateway.
    for (const { gateways, parvis } of systems) await measure(parvis, (quick ? 1_000 : 12_000) * gateways)
    for (const system of systems) system.limited = limitCpu(system.parvis.pids, SHARE)
    const limited = systems.every((system) => system.limited !== undefined)
    const rounds = quick ? 3 : 9
    for (let round = 0; round < rounds; round += 1) {
      for (const { gateways, parvis, taken } of round % 2 === 0 ? systems : systems.toReversed()) {
        taken.push(await measure(parvis, (quick ? 600 : 2_500) * gateways))
      }
    }
    const [one, ...several] = systems
    if (one === undefined) throw new Error('nothing was measured')
    const rows: Row[] = []
    const cpu = (taken: readonly Taken[]): number => median(taken.map(({ gatewayMicros }) => gatewayMicros))
    if (limited) {
      const value = median(one.taken.map(({ perSecond }) => perSecond))
      rows.push({
        what: 'one gateway',
        value,
        unit: '/s',
        beside: `JSON, 1 KB in, 2 KB out; ${SHARE * 100} % of a core, which does the work of the house, too`,
      })
    }
    for (const { gateways, taken } of several) {
      if (limited) {
        const times = median(taken.map(({ perSecond }, round) => perSecond / (one.taken[round]?.perSecond ?? Number.NaN)))
        rows.push({
          what: `${gateways} × one gateway, beside ${gateways} gateways`,
          value: gateways / times,
          unit: '×',
          beside: `they serve ${times.toFixed(2)} × what one serves; held ≥ ${(HELD * gateways).toFixed(2)} ×; median of ${rounds} rounds in turns`,
          cliff: { above: 2, why: 'each gateway must bring nearly what one alone serves' },
        })
      }
      const house = median(taken.map(({ houseMicros }) => houseMicros))
      rows.push({
        what: `CPU of ${gateways} gateways, per request`,
        value: cpu(taken),
        unit: 'µs',
        beside: `of one ${cpu(one.taken).toFixed(0)} µs; round by round ${median(
          taken.map(({ gatewayMicros }, round) => gatewayMicros / (one.taken[round]?.gatewayMicros ?? Number.NaN)),
        ).toFixed(2)} ×`,
      })
      rows.push({
        what: '  of the house beside them',
        value: house,
        unit: 'µs',
        beside: `per request; ${CLIENTS_PER_GATEWAY} connections to a gateway, made anew each round`,
        cliff: { above: 100, why: 'a request is nothing that the house has to do with' },
      })
    }
    if (!limited) rows.push({ what: 'throughput', value: Number.NaN, unit: '', beside: `not measured: ${GROUPS} cannot be written` })
    return rows
  } finally {
    for (const { parvis, limited } of systems.toReversed()) {
      limited?.free()
      await parvis.stop()
    }
    await engines.stop()
  }
}
