import type { Clock } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import type { Logger } from '../kit/log.ts'
import type { SendMail } from '../kit/mail.ts'
import type { Secrets } from '../kit/secrets.ts'
import { openChange } from './change.ts'
import { openCookies } from './cookies.ts'
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
  sendMail: SendMail
  publicUrl: () => string
  behindTls: boolean
  oidc: OidcSettings | undefined
}) => {
  const { db, secrets, clock, iam } = parts
  const passwords = openPasswords(secrets)
  const sessions = openSessions({ db, secrets, clock })
  const change = openChange(db, iam)
  const links = openLinks({ ...parts, change, passwords, failures: iam.failures })
  return {
    passwords,
    sessions,
    links,
    cookies: openCookies(parts),
    signIn: openSignIn({ ...parts, passwords, sessions, failures: iam.failures }),
    oidc: parts.oidc && openOidc({ ...parts, settings: parts.oidc, change, sessions }),
    close: links.close,
  }
}
