import { importStarter } from '../catalog/import.ts'
import { STARTER_NAME } from '../catalog/starter.ts'
import { BUILTIN_MODELS_DIR, pulledDir } from '../catalog/weights-path.ts'
import type { Config } from '../config.ts'
import { systemClock } from '../kit/clock.ts'
import { operatorHere } from './operator.ts'
import { openProgress } from './transfer-progress.ts'
import { withDatabase } from './with-database.ts'

/**
 * `parvis serve --starter`: pulls the small real model while the server runs, which then serves it. Asked for a second time it does nothing;
 * when it fails it says why, and the server serves what it has.
 */
export const pullStarter = async (config: Config, signal: AbortSignal): Promise<void> => {
  const progress = openProgress(process.stderr)
  const say = (text: string): void => {
    progress.close()
    process.stderr.write(`${text}\n`)
  }
  try {
    const added = await importStarter({
      endpoint: config.hubEndpoint,
      token: config.hubToken,
      weightsDirs: { builtin: BUILTIN_MODELS_DIR, pulled: pulledDir(config.dataDir) },
      clock: systemClock,
      signal,
      actor: operatorHere(),
      withDb: (work) => withDatabase(config, ({ db }) => work(db)),
      onFound: (found) => say(`Pulling ${found.source}`),
      onProgress: progress.update,
    })
    say(added ? `${STARTER_NAME} is in the catalogue.` : `${STARTER_NAME} is in the catalogue already.`)
  } catch (error) {
    if (signal.aborted) return progress.close()
    say(`${STARTER_NAME} could not be pulled. ${error instanceof Error ? error.message : String(error)}`)
  }
}
