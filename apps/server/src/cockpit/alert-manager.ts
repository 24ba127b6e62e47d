import type pg from 'pg'
import { z } from 'zod'
import type { Db } from '../kit/db.ts'
import { type Denial, forbidden, notFound } from '../kit/denial.ts'
import { newId, type ProjectId } from '../kit/ids.ts'
import { readPage } from '../kit/listing.ts'
import { type Manage, queryFlag } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { type CockpitRoom, change, cockpitPage, fits, GivenProject, projectOf, READS, REGIONAL, Uuid, WRITES } from './shapes.ts'

/** A test alert is sent to all of them at once. */
const MAX_CONTACT_POINTS = 10
/** Whoever may test may not fill a stranger's mailbox. */
const TEST_PAUSE_SECONDS = 60

const ManagerJson = z.object({
  alert_manager_url: z.url().nullable(),
  alert_manager_enabled: z.boolean(),
  managed_alerts_enabled: z.boolean(),
  region: z.string(),
})

type Contact = {
  readonly id: string
  readonly project_id: ProjectId
  readonly email: string
  readonly send_resolved_notifications: boolean
}

const ContactJson = z.object({ email: z.object({ to: z.string() }), region: z.string(), send_resolved_notifications: z.boolean() })

const contactToAudit = ({ project_id, email, send_resolved_notifications }: Contact) => ({
  projectId: project_id,
  email,
  sendResolved: send_resolved_notifications,
})

const CONTACTS = 'select id, project_id, email, send_resolved_notifications from contact_point where project_id = $1 and region = $2'

const PATH = `${REGIONAL}/alert-manager`
const POINTS = `${PATH}/contact-points`
const missing = (email: string): Outcome<never, Denial> => no(notFound('contact point', email))

/** control-plane.md 8.3: whether a project's alerts are on, and whom they tell. There are no rules yet, so there is nothing to fire. */
export const alertManagerRoutes = (manage: Manage, { db, clock, log, region, places, sendMail }: CockpitRoom): void => {
  const ofProject = z.looseObject(GivenProject)
  const ContactBody = z.looseObject({ ...GivenProject, email: z.looseObject({ to: z.email().max(320) }) })

  const managerToJson = (projectId: ProjectId, enabled: boolean): z.infer<typeof ManagerJson> => ({
    alert_manager_url: enabled ? places.alertManager(projectId, region) : null,
    alert_manager_enabled: enabled,
    managed_alerts_enabled: false,
    region,
  })
  const contactToJson = (contact: Contact): z.infer<typeof ContactJson> => ({
    email: { to: contact.email },
    region,
    send_resolved_notifications: contact.send_resolved_notifications,
  })
  const readContact = async (client: pg.ClientBase | Db, projectId: ProjectId, email: string): Promise<Contact | undefined> =>
    (await client.query<Contact>(`${CONTACTS} and lower(email) = lower($3)`, [projectId, region, email])).rows[0]

  const isEnabled = async (projectId: ProjectId): Promise<boolean> =>
    (await db.query('select from alert_manager where project_id = $1 and region = $2 and enabled', [projectId, region])).rowCount !== 0

  manage({
    method: 'GET',
    path: PATH,
    summary: "Read whether a project's alert manager is enabled.",
    needs: READS,
    query: ofProject,
    answer: ManagerJson,
    handle: async ({ query, actor, may }) => {
      const projectId = projectOf(actor, query)
      if (!may(READS, projectId)) return no(forbidden(READS))
      return yes(managerToJson(projectId, await isEnabled(projectId)))
    },
  })

  for (const [verb, enabled] of [
    ['enable', true],
    ['disable', false],
  ] as const) {
    manage({
      method: 'POST',
      path: `${PATH}/${verb}`,
      summary: `${enabled ? 'Enable' : 'Disable'} a project's alert manager; again is as good as once.`,
      needs: WRITES,
      body: ofProject,
      answer: ManagerJson,
      handle: async ({ body, actor, may }) => {
        const projectId = projectOf(actor, body)
        if (!may(WRITES, projectId)) return no(forbidden(WRITES))
        return change(db, actor, async (client, note) => {
          const { rowCount } = enabled
            ? await client.query(
                `insert into alert_manager (project_id, region) select id, $2 from project where id = $1 for key share
                 on conflict (project_id, region) do update set enabled = true, enabled_at = now() where not alert_manager.enabled`,
                [projectId, region],
              )
            : // Its row stays: it has when the last test alert was sent.
              await client.query('update alert_manager set enabled = false where project_id = $1 and region = $2 and enabled', [
                projectId,
                region,
              ])
          if (rowCount !== 0) {
            const [before, after] = [{ enabled: !enabled }, { enabled }]
            await note({ action: 'updated', resourceType: 'alert_manager', resourceId: projectId, before, after })
          }
          return yes(managerToJson(projectId, enabled))
        })
      },
    })
  }

  manage({
    method: 'GET',
    path: POINTS,
    summary: "List whom a project's alerts tell.",
    needs: READS,
    query: cockpitPage(['created_at_asc']),
    answer: z.object({
      contact_points: z.array(ContactJson),
      total_count: z.int(),
      has_additional_receivers: z.boolean(),
      has_additional_contact_points: z.boolean(),
    }),
    handle: async ({ query, actor, may }) => {
      const projectId = projectOf(actor, query)
      if (!may(READS, projectId)) return no(forbidden(READS))
      const { rows, total } = await readPage<Contact>(db, CONTACTS, [projectId, region], query, 'id')
      // There are none but those made here.
      const additional = { has_additional_receivers: false, has_additional_contact_points: false }
      return yes({ contact_points: rows.map(contactToJson), total_count: total, ...additional })
    },
  })

  manage({
    method: 'POST',
    path: POINTS,
    summary: 'Add an address that alerts tell.',
    needs: WRITES,
    body: ContactBody.extend({ send_resolved_notifications: z.boolean().default(false) }),
    answer: ContactJson,
    handle: async ({ body, actor, may }) => {
      const projectId = projectOf(actor, body)
      if (!may(WRITES, projectId)) return no(forbidden(WRITES))
      return change(db, actor, async (client, note) => {
        const fit = await fits(client, projectId, { table: 'contact_point', resource: 'CockpitContactPoints', quota: MAX_CONTACT_POINTS })
        if (!fit.ok) return fit
        const { rows } = await client.query<Contact>(
          `insert into contact_point (id, project_id, region, email, send_resolved_notifications) values ($1, $2, $3, $4, $5)
           on conflict do nothing returning id, project_id, email, send_resolved_notifications`,
          [newId(clock.now()), projectId, region, body.email.to, body.send_resolved_notifications],
        )
        const [made] = rows
        if (made === undefined)
          return no({ type: 'already_exists', resource: 'contact point', resource_id: '', help_message: 'this address is told already' })
        await note({ action: 'created', resourceType: 'contact_point', resourceId: made.id, after: contactToAudit(made) })
        return yes(contactToJson(made))
      })
    },
  })

  manage({
    method: 'PATCH',
    path: POINTS,
    summary: 'Change whether an address is told that an alert is over.',
    needs: WRITES,
    body: ContactBody.extend({ send_resolved_notifications: z.boolean().optional() }),
    answer: ContactJson,
    handle: async ({ body, actor, may }) => {
      const projectId = projectOf(actor, body)
      if (!may(WRITES, projectId)) return no(forbidden(WRITES))
      return change(db, actor, async (client, note) => {
        const before = await readContact(client, projectId, body.email.to)
        if (before === undefined) return missing(body.email.to)
        const after = { ...before, send_resolved_notifications: body.send_resolved_notifications ?? before.send_resolved_notifications }
        const { rowCount } = await client.query('update contact_point set send_resolved_notifications = $2 where id = $1', [
          before.id,
          after.send_resolved_notifications,
        ])
        if (rowCount === 0) return missing(body.email.to)
        await note({
          action: 'updated',
          resourceType: 'contact_point',
          resourceId: before.id,
          before: contactToAudit(before),
          after: contactToAudit(after),
        })
        return yes(contactToJson(after))
      })
    },
  })

  manage({
    method: 'POST',
    path: `${POINTS}/delete`,
    summary: 'Stop telling an address.',
    needs: WRITES,
    body: ContactBody,
    handle: async ({ body, actor, may }) => {
      const projectId = projectOf(actor, body)
      if (!may(WRITES, projectId)) return no(forbidden(WRITES))
      return change(db, actor, async (client, note) => {
        const before = await readContact(client, projectId, body.email.to)
        const { rowCount } = await client.query('delete from contact_point where id = $1', [before?.id ?? null])
        if (before === undefined || rowCount === 0) return missing(body.email.to)
        await note({ action: 'deleted', resourceType: 'contact_point', resourceId: before.id, before: contactToAudit(before) })
        return yes(undefined)
      })
    },
  })

  const unusable = (help_message: string): Outcome<never, Denial> =>
    no({ type: 'precondition_failed', precondition: 'resource_not_usable', help_message })

  manage({
    method: 'POST',
    path: `${PATH}/trigger-test-alert`,
    summary: 'Send a test alert to all contact points, by e-mail.',
    needs: WRITES,
    body: ofProject,
    handle: async ({ body, actor, may }) => {
      const projectId = projectOf(actor, body)
      if (!may(WRITES, projectId)) return no(forbidden(WRITES))
      const { rows: contacts } = await db.query<Contact>(CONTACTS, [projectId, region])
      if (contacts.length === 0) return unusable('there is no contact point to tell')
      if (!(await isEnabled(projectId))) return unusable('the alert manager is not enabled')
      const due = await change(db, actor, async (client, note) => {
        const { rowCount } = await client.query(
          `update alert_manager set tested_at = now()
            where project_id = $1 and region = $2 and (tested_at is null or tested_at < now() - make_interval(secs => $3))`,
          [projectId, region, TEST_PAUSE_SECONDS],
        )
        if (rowCount === 0) {
          const help_message = `a test alert can be sent every ${TEST_PAUSE_SECONDS} seconds`
          return no<Denial>({ type: 'too_many_requests', help_message, retryAfterMs: TEST_PAUSE_SECONDS * 1000 })
        }
        const told = contacts.map(({ email }) => email)
        await note({ action: 'updated', resourceType: 'alert_manager', resourceId: projectId, after: { tested: told } })
        return yes(undefined)
      })
      if (!due.ok) return due
      const failures = await Promise.all(
        contacts.map(({ email }) =>
          sendMail({
            id: newId(clock.now()),
            to: email,
            subject: 'Test alert',
            lines: [
              `This is a test alert of the project ${projectId}.`,
              '',
              'Somebody asked for it to see that alerts reach you. There is nothing to do.',
            ],
          }),
        ),
      )
      const reasons = new Set(failures.filter((reason) => reason !== undefined))
      if (reasons.size === 0) return yes(undefined)
      // Which mail server there is, and what it said, is the operator's business.
      log.warn({ projectId, reasons: [...reasons] }, 'a test alert could not be sent to every contact point')
      return unusable("not every contact point could be told; the operator's log says why")
    },
  })

  manage({
    method: 'GET',
    path: `${REGIONAL}/alerts`,
    summary: 'List the alerts of a project: there are none, since there are no rules.',
    needs: READS,
    query: z.looseObject({ ...GivenProject, is_preconfigured: queryFlag.optional(), data_source_id: Uuid.optional() }),
    answer: z.object({ alerts: z.array(z.never()), total_count: z.int() }),
    handle: async ({ query, actor, may }) =>
      may(READS, projectOf(actor, query)) ? yes({ alerts: [], total_count: 0 }) : no(forbidden(READS)),
  })

  manage({
    method: 'GET',
    path: `${REGIONAL}/rules/count`,
    summary: 'Count the alert rules of a project: there are none.',
    needs: READS,
    query: ofProject,
    answer: z.object({
      rules_count_by_datasource: z.array(z.never()),
      preconfigured_rules_count: z.int(),
      custom_rules_count: z.int(),
    }),
    handle: async ({ query, actor, may }) =>
      may(READS, projectOf(actor, query))
        ? yes({ rules_count_by_datasource: [], preconfigured_rules_count: 0, custom_rules_count: 0 })
        : no(forbidden(READS)),
  })
}
