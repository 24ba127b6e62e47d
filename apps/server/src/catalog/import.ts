import type { By } from '../audit/record.ts'
import type { Db } from '../kit/db.ts'
import { addModel, type NewModel, readModels } from './models.ts'
import { STARTER, STARTER_CONTEXT_TOKENS, STARTER_NAME } from './starter.ts'
import { type Choices, pulledToModel } from './weights/entry.ts'
import { type Pulled, type PullOptions, pullModel } from './weights/pull.ts'

/** A database for a moment: a download may take hours, and nothing is held open or shut out meanwhile. */
export type WithDb = <T>(work: (db: Db) => Promise<T>) => Promise<T>

export type ImportOptions = PullOptions & { readonly choices: Choices; readonly withDb: WithDb; readonly actor: By }

const isPresent = async (withDb: WithDb, name: string): Promise<boolean> => (await withDb(readModels)).some((model) => model.name === name)

/** Pulls weights and puts them into the catalogue. A name that is taken is said before anything is fetched. */
export const importModel = async (options: ImportOptions): Promise<{ readonly pulled: Pulled; readonly model: NewModel }> => {
  const { choices, withDb, clock, actor } = options
  const pulled = await pullModel({
    ...options,
    onFound: async (found) => {
      const name = choices.name ?? found.name
      if (await isPresent(withDb, name)) {
        throw new Error(
          `There is a model ${name} already. Remove it first (parvis models remove ${name}), or choose another name (--name).`,
        )
      }
      await options.onFound?.(found)
    },
  })
  const model = pulledToModel(pulled, choices)
  await withDb((db) => addModel(db, clock, actor, model))
  return { pulled, model }
}

/** The small real model that is offered at first start; false when it is there already. */
export const importStarter = async (options: Omit<ImportOptions, 'reference' | 'choices'>): Promise<boolean> => {
  if (await isPresent(options.withDb, STARTER_NAME)) return false
  await importModel({ ...options, reference: STARTER, choices: { name: STARTER_NAME, contextTokens: STARTER_CONTEXT_TOKENS } })
  return true
}
