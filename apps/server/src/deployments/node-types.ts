const MIB = 2 ** 20

/** A kind of machine that a deployment runs on (control-plane.md 4.1). Memory is bytes over the whole node. */
export type NodeType = {
  readonly name: string
  readonly description: string
  readonly vcpus: number
  readonly memoryBytes: number
  readonly vramBytes: number
  readonly gpus: number
  readonly createdAt: Date
}

/** Since when there is this one. */
const CPU_SINCE = new Date('2026-11-22T00:00:00Z')

/** What runs here: one embedded engine, with what the settings give to each of them. */
export const cpuNode = (engine: { readonly threads: number; readonly memoryMb: number }): NodeType => ({
  name: 'CPU',
  description: 'A part of the machine that Parvis runs on, without a GPU, for small models.',
  vcpus: engine.threads,
  memoryBytes: engine.memoryMb * MIB,
  vramBytes: 0,
  gpus: 0,
  createdAt: CPU_SINCE,
})
