import { getHeapStatistics, setFlagsFromString } from 'node:v8'

/**
 * Once the first requests of a process have been slow, V8 takes what they made for long-lived and makes it in the old generation from then on, where only a full
 * collection finds it. Nothing of a request is: without this, gateways that start under load spend 15 % more.
 */
const KEEP_YOUNG = '--no-allocation-site-pretenuring'

const ROOM_BYTES = 40 * 1024 * 1024
const LEAST_PERCENT = 10
const LOOK_EVERY_MS = 1_000

/**
 * How much the heap of a gateway may grow before V8 looks through it: by so many bytes, and not by a part of it as V8 decides by itself. The bytes of bodies
 * count as growth, so a small heap would be looked through for every twenty images of a megabyte (4 ms of processor time for each, 1.5 with this room); a
 * large one that may double is mostly garbage (5,000 open streams were 350 MiB, and are 280).
 */
export const tuneHeap = (): (() => void) => {
  setFlagsFromString(KEEP_YOUNG)
  let percent = 0
  const look = (): void => {
    const next = Math.max(LEAST_PERCENT, Math.round((100 * ROOM_BYTES) / getHeapStatistics().used_heap_size))
    if (next === percent) return
    percent = next
    setFlagsFromString(`--heap-growing-percent=${percent}`)
  }
  look()
  const timer = setInterval(look, LOOK_EVERY_MS)
  timer.unref()
  return () => clearInterval(timer)
}
