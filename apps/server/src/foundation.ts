import { type Catalog, openCatalog } from './catalog/catalog.ts'
import { BUILTIN_MODELS_DIR, pulledDir } from './catalog/weights-path.ts'
import { withoutSpeech } from './catalog/without-speech.ts'
import type { Config } from './config.ts'
import { isSpeechInstalled } from './engines/local.ts'
import type { Building } from './kit/building.ts'
import { type Changes, openChanges } from './kit/changes.ts'
import type { Clock } from './kit/clock.ts'
import type { Db } from './kit/db.ts'
import type { Logger } from './kit/log.ts'
import type { Secrets } from './kit/secrets.ts'
import { type Policy, watchPolicy } from './quota/policy.ts'

/** What a process of the house has at hand before anything of ours is in it. */
export type Ground = {
  readonly clock: Clock
  readonly log: Logger
  readonly open: Building['open']
  /** Of the database. */
  readonly url: string
  readonly db: Db
  readonly secrets: Secrets
}

export type Foundation = Ground & {
  readonly changes: Changes
  readonly catalog: Catalog
  /** The catalogue without what nobody here can run. */
  readonly served: Pick<Catalog, 'resolve' | 'list'>
  /** Limits and budgets, as they are now. */
  readonly policy: () => Policy
}

/** What every process of the house stands on: how it hears of changes, which models there are, and what may be used. */
export const openFoundation = async (config: Config, ground: Ground): Promise<Foundation> => {
  const { db, url, clock, log, open } = ground
  const changes = await openChanges({ db, url, clock, log })
  open('changes', () => changes.close())
  const weightsDirs = { builtin: BUILTIN_MODELS_DIR, pulled: pulledDir(config.dataDir) }
  const catalog = await openCatalog({ db, changes, clock, log, weightsDirs })
  const policy = await watchPolicy({ db, changes })
  return { ...ground, changes, catalog, policy, served: isSpeechInstalled() ? catalog : withoutSpeech(catalog) }
}
