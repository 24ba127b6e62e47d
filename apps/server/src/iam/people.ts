import type { Clock } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import type { Logger } from '../kit/log.ts'
import type { SendMail } from '../kit/mail.ts'
import type { Secrets } from '../kit/secrets.ts'
import { openChange } from './change.ts'
import { openCookies } from './cookies.ts'
import { type Elsewhere, type Failures, openFailures } from './failures.ts'
import type { Fits } from './fits.ts'
import type { Iam } from './iam.ts'
import { openLinks } from './links.ts'
import { type OidcSettings, openOidc } from './oidc.ts'
import { openPasswords } from './passwords.ts'
import { openSessions } from './sessions.ts'
import { openSignIn } from './sign-in.ts'

export type People = ReturnType<typeof openPeople>

/** All that people sign in with. `publicUrl`: where they reach us, known once the server listens. */
export const openPeople = (parts: {
  db: Db
  clock: Clock
  log: Logger
  secrets: Secrets
  iam: Pick<Iam, 'knowing' | 'failures'>
  fits: Fits
  sendMail: SendMail
  publicUrl: () => string
  behindTls: boolean
  oidc: OidcSettings | undefined
  elsewhere?: Elsewhere | undefined
}) => {
  const { db, secrets, clock, iam } = parts
  const passwords = openPasswords(secrets)
  // What fails here counts among the wrong keys of its address, too, but not the other way round: an application that goes on with a key
  // of yesterday must not keep everybody behind the same address from signing in.
  const own = openFailures(clock, parts.elsewhere)
  const failures: Failures = {
    waitMs: own.waitMs,
    count: (ip, weight) => {
      iam.failures.count(ip, weight)
      return own.count(ip, weight)
    },
  }
  const sessions = openSessions({ db, secrets, clock })
  const change = openChange(db, iam)
  const links = openLinks({ ...parts, change, passwords, failures })
  return {
    passwords,
    sessions,
    links,
    failures,
    cookies: openCookies(parts),
    signIn: openSignIn({ ...parts, passwords, sessions, failures }),
    oidc: parts.oidc && openOidc({ ...parts, settings: parts.oidc, change, sessions }),
    close: links.close,
  }
}
