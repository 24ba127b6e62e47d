import type { Refusal } from './refusal.ts'

/**
 * What may be refused. A refusal is something we say to a caller who asked for what they may not or cannot have;
 * it is a value. A fault, ours or somebody's outage, is thrown.
 */
export type Outcome<T, R = Refusal> = { readonly ok: true; readonly value: T } | { readonly ok: false; readonly refusal: R }

export const yes = <T>(value: T): { readonly ok: true; readonly value: T } => ({ ok: true, value })
export const no = <R>(refusal: R): { readonly ok: false; readonly refusal: R } => ({ ok: false, refusal })
