import pg from 'pg'
import type { Clock } from './clock.ts'
import type { Db } from './db.ts'
import type { Logger } from './log.ts'

/**
 * How a process hears that a room's rows have moved. Whoever moves them calls `note_change(room)` in the same transaction.
 * A notification makes it quick; a poll of the `change` table makes it sure, and is all that is left where a connection
 * cannot listen. A room whose reload fails keeps what it knows and tries again at the next poll.
 */
export type Changes = {
  /** Runs `reload` once now, and throws if that fails; from then on again whenever the room's version has moved. */
  watch(room: string, reload: () => Promise<void>): Promise<void>
  close(): Promise<void>
}

const POLL_MS = 500
const CONNECT_LIMIT_MS = 5_000
const ANSWER_LIMIT_MS = 5_000
const LEAVE_LIMIT_MS = 1_000

type Watched = { version: bigint; reload: () => Promise<void>; busy: Promise<void> | undefined; failing: boolean }

const readVersion = async (db: Db, room: string): Promise<bigint> => {
  const { rows } = await db.query<{ version: bigint }>({
    name: 'change-version',
    text: 'select version from change where room = $1',
    values: [room],
  })
  return rows[0]?.version ?? 0n
}

export const openChanges = async (options: { db: Db; url: string; clock: Clock; log: Logger }): Promise<Changes> => {
  const { db, clock, log } = options
  const watched = new Map<string, Watched>()
  const closing = new AbortController()
  let listener: pg.Client | undefined
  let away = false
  let wake: () => void = () => undefined
  let woken = false

  /** A connection of its own: one that listens cannot go back into the pool. */
  const listen = async (): Promise<pg.Client> => {
    const client = new pg.Client({
      connectionString: options.url,
      connectionTimeoutMillis: CONNECT_LIMIT_MS,
      query_timeout: ANSWER_LIMIT_MS,
      keepAlive: true,
      application_name: 'parvis changes',
    })
    const lost = () => {
      if (listener === client) listener = undefined
    }
    client.on('error', lost)
    client.on('end', lost)
    client.on('notification', () => {
      woken = true
      wake()
    })
    try {
      await client.connect()
      await client.query('listen parvis_change')
    } catch (error) {
      await leave(client)
      throw error
    }
    return client
  }

  /** Says goodbye, and does not wait long for a server that no longer hears it. */
  const leave = async (client: pg.Client | undefined): Promise<void> => {
    if (client === undefined) return
    const left = new AbortController()
    const limit = clock.sleep(LEAVE_LIMIT_MS, left.signal).catch(() => undefined)
    await Promise.race([client.end().catch(() => undefined), limit])
    left.abort()
  }

  const bring = async (room: string, entry: Watched, version: bigint): Promise<void> => {
    try {
      await entry.reload()
      entry.version = version
      if (entry.failing) log.info({ room }, 'reloading works again')
      entry.failing = false
      // The version may have moved on meanwhile; the next look need not wait for the poll.
      woken = true
      wake()
    } catch (error) {
      // Once per outage: the poll tries twice a second.
      if (!entry.failing) log.error({ room, err: error }, 'reloading failed; what is known stays in use')
      entry.failing = true
    }
  }

  const look = async (): Promise<void> => {
    listener ??= await listen()
    const { rows } = await listener.query<{ room: string; version: string }>('select room, version from change')
    for (const row of rows) {
      const entry = watched.get(row.room)
      const version = BigInt(row.version)
      // Not "greater": after a backup is put back, versions may be lower, and the rows are others all the same.
      if (entry === undefined || entry.version === version || entry.busy !== undefined) continue
      entry.busy = bring(row.room, entry, version).finally(() => {
        entry.busy = undefined
      })
    }
  }

  /** Half a second, a notification, or the end. */
  const rest = async (): Promise<void> => {
    if (woken) {
      woken = false
      return
    }
    const early = new AbortController()
    wake = () => early.abort()
    if (closing.signal.aborted) return
    await clock.sleep(POLL_MS, early.signal).catch(() => undefined)
    wake = () => undefined
    woken = false
  }

  const loop = async (): Promise<void> => {
    while (!closing.signal.aborted) {
      try {
        await look()
        if (away) log.info('the database answers again')
        away = false
      } catch (error) {
        if (!away && !closing.signal.aborted) log.error({ err: error }, 'the database does not answer; what is known stays in use')
        away = true
        const broken = listener
        listener = undefined
        await leave(broken)
      }
      await rest()
    }
  }

  listener = await listen()
  const running = loop()

  return {
    watch: async (room, reload) => {
      if (watched.has(room)) throw new Error(`The room ${room} is already watched.`)
      // The version first: rows that move while we load are then seen as moved, and loaded once more.
      const version = await readVersion(db, room)
      await reload()
      watched.set(room, { version, reload, busy: undefined, failing: false })
    },
    close: async () => {
      closing.abort()
      wake()
      await leave(listener)
      await running
      for (const { busy } of watched.values()) await busy
      // The loop may have made one more while it was told to stop.
      await leave(listener)
    },
  }
}
