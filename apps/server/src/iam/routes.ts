import type { Db } from '../kit/db.ts'
import type { Manage } from '../kit/management.ts'
import type { Secrets } from '../kit/secrets.ts'
import { accountRoutes } from './account-routes.ts'
import { apiKeyRoutes } from './api-keys.ts'
import { applicationRoutes } from './applications.ts'
import { openChange } from './change.ts'
import type { Fits } from './fits.ts'
import { groupRoutes } from './groups.ts'
import type { Iam } from './iam.ts'
import { installationRoutes } from './installation-routes.ts'
import { linkRoutes } from './link-routes.ts'
import { organizationRoutes } from './organization-routes.ts'
import type { People } from './people.ts'
import { policyRoutes } from './policies.ts'
import { sessionRoutes } from './session-routes.ts'
import { userRoutes } from './users.ts'

/** IAM v1alpha1 and account v3 (control-plane.md 5 and 6), and organizations as the operator has them; quotas are the quota room's. */
export const iamRoutes = (manage: Manage, parts: { db: Db; secrets: Secrets; iam: Iam; people: People; fits: Fits }): void => {
  const room = { ...parts, change: openChange(parts.db, parts.iam) }
  accountRoutes(manage, room)
  applicationRoutes(manage, room)
  userRoutes(manage, room)
  groupRoutes(manage, room)
  policyRoutes(manage, room)
  apiKeyRoutes(manage, room)
  organizationRoutes(manage, room)
  sessionRoutes(manage, room)
  linkRoutes(manage, room)
  installationRoutes(manage, room)
}
