import { randomFillSync } from 'node:crypto'
import type { Instant } from './clock.ts'

/** A lower-case UUID that says what it names. The brand keeps one thing's id out of another's place. */
export type Id<What extends string> = string & { readonly __id: What }
export type OrganizationId = Id<'organization'>
export type ProjectId = Id<'project'>
export type PrincipalId = Id<'principal'>
export type ModelId = Id<'model'>
export type PoolId = Id<'pool'>
export type PriceId = Id<'price'>
export type EngineId = Id<'engine'>
export type RequestId = Id<'request'>

/** `SCW` and 17 of `A-Z0-9`: the public half of an API key (control-plane.md 2.1). */
export type AccessKey = string & { readonly __id: 'access-key' }

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/

/** Lower case only, as the first path segment must be (data-plane.md 2.1). */
export const isUuid = (text: string): boolean => UUID.test(text)

const POOL_BYTES = 16 * 256 // one call to the random source for 256 ids: the call costs more than the bytes
const pool = Buffer.alloc(POOL_BYTES)
let used = POOL_BYTES

const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, '0'))

/** A UUID of version 7 (RFC 9562 §5.7): it begins with the instant, so an index grows at its end. */
export const newId = <What extends string>(now: Instant): Id<What> => {
  if (used === POOL_BYTES) {
    randomFillSync(pool)
    used = 0
  }
  const at = used
  used += 16
  const time = now.toString(16).padStart(12, '0')
  const byte = (index: number): string => HEX[pool[at + index] ?? 0] ?? '00'
  const version = HEX[0x70 | ((pool[at + 6] ?? 0) & 0x0f)] ?? '70'
  const variant = HEX[0x80 | ((pool[at + 8] ?? 0) & 0x3f)] ?? '80'
  return `${time.slice(0, 8)}-${time.slice(8)}-${version}${byte(7)}-${variant}${byte(9)}-${byte(10)}${byte(11)}${byte(12)}${byte(13)}${byte(14)}${byte(15)}` as Id<What>
}
