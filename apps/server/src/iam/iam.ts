import type pg from 'pg'
import type { Changes } from '../kit/changes.ts'
import type { Clock } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import type { AccessKey, OrganizationId, PrincipalId, ProjectId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import type { Secrets } from '../kit/secrets.ts'
import { type Authenticate, authenticator, hashToText, type Known, type KnownKey } from './authenticate.ts'
import { type Condition, compileCondition } from './condition.ts'
import { type ConditionTime, openConditionTime } from './condition-time.ts'
import { type Elsewhere, type Failures, openFailures } from './failures.ts'
import { readInstallation } from './installation.ts'
import { PERMISSION_SETS, type Right } from './permission-sets.ts'
import type { Grant, Rights } from './rights.ts'

// Between two pieces of the table the event loop serves requests: a piece costs about a millisecond of it, 100,000 keys half a second in all.
const PIECE_ROWS = 250
/** A key is said to be expired, and not unknown, for so long. */
const EXPIRED_KEPT_DAYS = 90
/** How long a change waits until this process knows of it. */
const CATCH_UP_MS = 2_000

type KeyRow = {
  access_key: AccessKey
  secret_hash: Buffer
  organization_id: OrganizationId
  principal_id: PrincipalId
  kind: 'user' | 'application'
  expires_at: Date | null
}
type ProjectRow = { id: ProjectId; organization_id: OrganizationId }
type RuleRow = { policy_id: string; permission_set_names: string[]; project_ids: ProjectId[] | null; condition: string }
type BearerRow = { policy_id: string; principal_id: PrincipalId }

/** Hands on a result piece by piece; a cursor sees the table as it was when it was opened. */
const eachRow = async <Row extends pg.QueryResultRow>(client: pg.ClientBase, sql: string, take: (row: Row) => void): Promise<void> => {
  await client.query(`declare known no scroll cursor for ${sql}`)
  for (;;) {
    const { rows } = await client.query<Row>(`fetch ${PIECE_ROWS} from known`)
    for (const row of rows) take(row)
    if (rows.length < PIECE_ROWS) break
  }
  await client.query('close known')
}

/** Rules with the same sets share their rights: there are many rules and few kinds of them. */
const rightsOfSets = (): ((names: readonly string[]) => ReadonlySet<Right>) => {
  const known = new Map<string, ReadonlySet<Right>>()
  return (names) => {
    const text = names.join(' ')
    const rights = known.get(text) ?? new Set(names.flatMap((name) => PERMISSION_SETS.get(name)?.rights ?? []))
    known.set(text, rights)
    return rights
  }
}

/** What the texts of conditions mean, `undefined` where they do not compile. To compile one costs half a millisecond and 100 KB. */
type Conditions = ReadonlyMap<string, { readonly condition: Condition | undefined } | undefined>

/** A policy with a rule that grants nothing, since its condition does not compile. */
type Mute = { readonly policyId: string; readonly reason: string }
const MAX_MUTE_TOLD = 10
const MAX_REASON_CHARACTERS = 200

const RULES = `
  select policy_id, permission_set_names, project_ids, condition
    from policy_rule
    join policy on policy.id = policy_id
    join organization on organization.id = policy.organization_id and organization.state = 'active'`

// A policy helps its principal, the members of its group, or all of a kind where its group is one of the two managed ones.
const BEARERS = `
  select policy.id as policy_id, principal.id as principal_id
    from policy
    join organization on organization.id = policy.organization_id and organization.state = 'active'
    left join principal_group on principal_group.id = policy.group_id
    join principal on principal.organization_id = policy.organization_id and (
         principal.id = policy.principal_id
      or principal.kind = principal_group.everybody
      or exists (select 1 from group_member where group_member.group_id = policy.group_id and group_member.principal_id = principal.id))
   where policy.principal_id is not null or policy.group_id is not null`

type Everything = Known & { readonly rights: ReadonlyMap<PrincipalId, Rights>; readonly conditions: Conditions; readonly version: bigint }

/** All keys, rights and projects as of one moment. Keys that expire later are judged by the clock. `compiled`: what was known before of conditions; `mute` is filled. */
const readKnown = (db: Db, compiled: Conditions, mute: Mute[]): Promise<Everything> =>
  transaction(db, async (client) => {
    await client.query('set transaction isolation level repeatable read, read only')
    const { rows: versions } = await client.query<{ version: bigint }>(`select version from change where room = 'iam'`)
    // Nobody of an organization that is suspended or closed has any right, its owner included.
    const { rows: owners } = await client.query<{ id: PrincipalId }>(
      `select principal.id from principal join organization on organization.id = organization_id
        where role = 'owner' and organization.state = 'active'`,
    )
    const rights = new Map<PrincipalId, Rights>(owners.map(({ id }) => [id, 'everything']))
    const rightsOf = rightsOfSets()
    const conditions = new Map<string, { readonly condition: Condition | undefined } | undefined>()
    const grants = new Map<string, Grant[]>()
    await eachRow<RuleRow>(client, RULES, (row) => {
      const { condition: text } = row
      if (!conditions.has(text)) {
        // What does not compile is not tried again either.
        if (compiled.has(text)) conditions.set(text, compiled.get(text))
        else {
          const made = compileCondition(text)
          conditions.set(text, made.ok ? { condition: made.value } : undefined)
          if (!made.ok && mute.length < MAX_MUTE_TOLD)
            mute.push({ policyId: row.policy_id, reason: made.refusal.slice(0, MAX_REASON_CHARACTERS) })
        }
      }
      const known = conditions.get(text)
      // Nothing is stored that does not compile; what an older version took and this one does not grants nothing.
      if (known === undefined) return
      const grant = {
        rights: rightsOf(row.permission_set_names),
        projects: row.project_ids === null ? undefined : new Set(row.project_ids),
        condition: known.condition,
      }
      const before = grants.get(row.policy_id)
      if (before === undefined) grants.set(row.policy_id, [grant])
      else before.push(grant)
    })
    // One grant stands for all who have it: a policy for a thousand applications is not a thousand of them.
    await eachRow<BearerRow>(client, BEARERS, (row) => {
      const given = grants.get(row.policy_id)
      const before = rights.get(row.principal_id)
      if (given !== undefined && before !== 'everything') rights.set(row.principal_id, before === undefined ? given : [...before, ...given])
    })
    const keys = new Map<string, KnownKey>()
    await eachRow<KeyRow>(
      client,
      `select access_key, secret_hash, api_key.organization_id, principal_id, kind, expires_at
         from api_key join principal on principal.id = principal_id
        where not locked and (expires_at is null or expires_at > now() - interval '${EXPIRED_KEPT_DAYS} days')`,
      (row) =>
        keys.set(hashToText(row.secret_hash), {
          accessKey: row.access_key,
          organizationId: row.organization_id,
          principalId: row.principal_id,
          kind: row.kind,
          rights: rights.get(row.principal_id) ?? [],
          expiresAt: row.expires_at?.getTime() ?? Number.POSITIVE_INFINITY,
        }),
    )
    const projects = new Map<ProjectId, OrganizationId>()
    await eachRow<ProjectRow>(client, 'select id, organization_id from project', (row) => projects.set(row.id, row.organization_id))
    return { keys, projects, rights, conditions, version: versions[0]?.version ?? 0n }
  })

export type Iam = {
  readonly authenticate: Authenticate
  /** By the secret key in lower case; one that has expired, too. */
  keyOf(secretKey: string): KnownKey | undefined
  knownProjects(): Known['projects']
  /** What a principal may, whatever it goes by. */
  rightsOf(principalId: PrincipalId): Rights
  /** The organization that the first start made: its people operate the installation. */
  readonly operatorId: OrganizationId
  /** Resolves when this process knows what the version of the room's rows says, or after a while all the same. */
  knowing(version: bigint): Promise<void>
  readonly clock: Clock
  readonly failures: Failures
  readonly conditionTime: ConditionTime
}

/**
 * Knows all keys in memory and follows the database. While the database is away, the keys that are known go on; one that
 * is revoked is gone everywhere within a second of its transaction.
 */
export const openIam = async (options: {
  db: Db
  changes: Changes
  secrets: Secrets
  clock: Clock
  log: Logger
  elsewhere?: Elsewhere | undefined
}): Promise<Iam> => {
  const { db, secrets, clock, log } = options
  const installation = await readInstallation(db, secrets)
  if (installation === undefined) throw new Error('The database is not set up: bootstrap comes before iam.')
  let known: Everything = { keys: new Map(), projects: new Map(), rights: new Map(), conditions: new Map(), version: 0n }
  let told: (() => void)[] = []
  await options.changes.watch('iam', async () => {
    const mute: Mute[] = []
    known = await readKnown(db, known.conditions, mute)
    if (mute.length > 0)
      log.warn(
        { rules: mute },
        'rules of these policies grant nothing: their conditions are not taken any more and have to be written anew',
      )
    log.debug({ keys: known.keys.size, projects: known.projects.size }, 'read the keys')
    const waiting = told
    told = []
    for (const tell of waiting) tell()
  })
  const failures = openFailures(clock, options.elsewhere)
  const conditionTime = openConditionTime(clock)
  return {
    authenticate: authenticator(() => known, secrets, clock, failures, conditionTime),
    keyOf: (secretKey) => known.keys.get(secrets.hashKeyToText(secretKey)),
    knownProjects: () => known.projects,
    rightsOf: (principalId) => known.rights.get(principalId) ?? [],
    operatorId: installation.organizationId,
    knowing: async (version) => {
      const late = new AbortController()
      let over = false
      const limit = clock.sleep(CATCH_UP_MS, late.signal).then(
        () => void (over = true),
        () => undefined,
      )
      while (known.version < version && !over) await Promise.race([limit, new Promise<void>((resolve) => void told.push(resolve))])
      late.abort()
    },
    clock,
    failures,
    conditionTime,
  }
}
