import { z } from 'zod'
import type { Db } from '../kit/db.ts'
import { pageQuery } from '../kit/management.ts'
import type { Secrets } from '../kit/secrets.ts'
import type { Change } from './change.ts'
import type { Fits } from './fits.ts'
import type { Iam } from './iam.ts'
import type { People } from './people.ts'

// What the routes of iam have in common (control-plane.md 5).

/** What the routes of this room work with. */
export type IamRoom = {
  readonly db: Db
  readonly change: Change
  readonly fits: Fits
  readonly secrets: Secrets
  readonly iam: Pick<Iam, 'clock' | 'operatorId' | 'rightsOf'>
  readonly people: People
}

export const Name = z
  .string()
  .min(1)
  .max(64)
  .regex(/^[a-zA-Z0-9()._\- ]+$/)
export const Description = z.string().max(200)
export const Tags = z.array(z.string().min(1).max(128)).max(50)
export const Ids = z.array(z.uuid()).max(1_000)

export const iamPage = <const O extends readonly [string, ...string[]]>(orders: O) =>
  pageQuery({ max: 100, fallback: 20, orders, clamp: false })

/** A username or an address of e-mail. */
export const Login = z.string().min(1).max(254)
/** Bounded; what a password must be like, passwords.ts says. */
export const Password = z.string().min(1).max(1_024)
export const LinkToken = z.string().min(1).max(128)

export const Stamps = { created_at: z.iso.datetime(), updated_at: z.iso.datetime() }
