import type { AccessKey, OrganizationId, PrincipalId, ProjectId } from '../kit/ids.ts'

/** Who is asking, and for which project: what a valid key and the project of the URL amount to. */
export type Caller = {
  readonly organizationId: OrganizationId
  readonly projectId: ProjectId
  readonly principalId: PrincipalId
  readonly accessKey: AccessKey
}
