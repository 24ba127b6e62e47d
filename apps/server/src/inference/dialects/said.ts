import type { Picture, Said } from './conversation.ts'

export const textOf = (said: readonly Said[]): string => said.map((part) => ('text' in part ? part.text : '')).join('')

export const picturesOf = (said: readonly Said[]): Picture[] => said.flatMap((part) => ('picture' in part ? [part.picture] : []))

/** The fields without those that were not given. */
export const given = (fields: Record<string, unknown>): Record<string, unknown> =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined && value !== null))
