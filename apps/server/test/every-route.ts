import { randomUUID } from 'node:crypto'
import { PERMISSION_SETS } from '@parvis/server/iam/permission-sets'
import type { KnownRoute } from '@parvis/server/kit/management'
import type { TestHouse } from '@parvis/testkit/house'

// How to call every route of the management API with success, for the tests that walk over all of them.

export type Call = { readonly method: string; readonly path: string; readonly body: unknown }
export type Answer = { readonly status: number; readonly body: Record<string, unknown> }

const IAM = '/iam/v1alpha1'
const REGION = 'fr-par'
const COCKPIT = `/cockpit/v1/regions/${REGION}`

/** The permission sets, those together that open the same: one bearer stands for them, since there are more sets than an organization has policies. */
export const setsAlike = (): readonly (readonly string[])[] => {
  const alike = new Map<string, string[]>()
  for (const [name, { scopeType, rights }] of PERMISSION_SETS) {
    const what = `${scopeType} ${rights.toSorted().join()}`
    alike.set(what, [...(alike.get(what) ?? []), name])
  }
  return [...alike.values()]
}

/** Somebody who makes what a call needs, as the owner of the operator's organization. */
export const openCalls = (house: TestHouse) => {
  const own = house.owner.organizationId

  const ask = async (method: string, path: string, body?: unknown, key: string | null = house.secretKey): Promise<Answer> => {
    const headers = { 'user-agent': 'every-route/1', ...(key === null ? {} : { 'x-auth-token': key }) }
    const answer = await house.call(path, { method, key: null, body, headers })
    const json = answer.headers.get('content-type')?.startsWith('application/json') === true && answer.text !== ''
    return { status: answer.status, body: json ? (answer.json() as Record<string, unknown>) : {} }
  }
  const must = async (method: string, path: string, body?: unknown): Promise<Record<string, unknown>> => {
    const answer = await ask(method, path, body)
    if (answer.status >= 300) throw new Error(`${method} ${path}: ${answer.status} ${JSON.stringify(answer.body)}`)
    return answer.body
  }
  const made = async (path: string, body: unknown, field = 'id', method = 'POST'): Promise<string> =>
    String((await must(method, path, body))[field])
  let count = 0
  const name = (): string => `thing-${(count += 1)}`

  const application = () => made(`${IAM}/applications`, { name: name() })
  const user = () => made(`${IAM}/users`, { email: `${name()}@example.com` })
  const group = () => made(`${IAM}/groups`, { name: name() })
  const project = () => made('/account/v3/projects', { name: name() })
  const organization = () => made('/parvis/v1/organizations', { name: name() })
  const chat = { type: 'chat', owned_by: 'test', context_tokens: 4096, max_output_tokens: 256, price: { input: '0.15', output: '0.35' } }
  const model = () => made('/parvis/v1/models', { ...chat, name: name() }, 'name')
  const engine = async () =>
    made(`/parvis/v1/engines/${name()}`, { url: 'http://127.0.0.1:9', key: SECRET, models: [{ model: await model() }] }, 'name', 'PUT')
  const dataSource = () => made(`${COCKPIT}/data-sources`, { project_id: own, name: name(), type: 'metrics' })
  const share = (field: string) =>
    made('/parvis/v1/usage-shares', { project_id: own, expires_at: new Date(Date.now() + 3_600_000).toISOString() }, field)
  const budget = async (): Promise<string> => {
    const there = (await must('GET', '/billing/v2/budgets'))['budgets'] as { id: string }[]
    return there[0]?.id ?? (await made('/billing/v2/budgets', { consumption_limit: 100, enabled: true }))
  }
  const alert = async (): Promise<string> => {
    const id = await budget()
    const there = ((await must('GET', '/billing/v2/budgets'))['budgets'] as { alerts: { id: string }[] }[])[0]?.alerts ?? []
    // There are ten at most.
    if (there.length >= 9) await must('DELETE', `/billing/v2/budget-alerts/${there[0]?.id}`)
    return made('/billing/v2/budget-alerts', { budget_id: id, threshold: 50 })
  }
  const notification = async () =>
    made('/billing/v2/budget-alert-notifications', { budget_alert_id: await alert(), webhook_urls: ['https://example.com/hook-of-theirs'] })
  const contact = async (): Promise<{ to: string }> => {
    const email = { to: `${name()}@example.com` }
    await must('POST', `${COCKPIT}/alert-manager/contact-points`, { project_id: own, email })
    return email
  }
  const withAlertManager = () => ask('POST', `${COCKPIT}/alert-manager/enable`, { project_id: own })

  /** What stands in a path, by its name: something new each time, so that it can be changed and deleted. */
  const params: Record<string, (route: KnownRoute) => Promise<string>> = {
    application_id: application,
    user_id: user,
    group_id: group,
    policy_id: () => made(`${IAM}/policies`, { name: name(), no_principal: true }),
    access_key: async () => made(`${IAM}/api-keys`, { application_id: await application() }, 'access_key'),
    project_id: project,
    organization_id: (route) => (route.path.startsWith(IAM) ? Promise.resolve(own) : organization()),
    log_id: async () => ((await must('GET', `${IAM}/logs`))['logs'] as { id: string }[])[0]?.id ?? '',
    quotum_name: () => Promise.resolve('IamApiKeys'),
    model_name: model,
    engine_name: engine,
    tier: () => Promise.resolve('none'),
    share_id: () => share('id'),
    token: () => share('token'),
    budget_id: (route) =>
      route.path.startsWith('/parvis')
        ? made('/parvis/v1/budgets', { unit: 'tokens', period: 'day', amount: 1_000_000 }, 'id', 'PUT')
        : budget(),
    budget_alert_id: alert,
    budget_alert_notification_id: notification,
    region: () => Promise.resolve(REGION),
    data_source_id: dataSource,
    token_id: () => made(`${COCKPIT}/tokens`, { project_id: own, name: name(), token_scopes: ['read_only_metrics'] }),
    grafana_user_id: () => made('/cockpit/v1/grafana/users', { project_id: own, login: name(), role: 'viewer' }),
  }

  const member = async () => {
    const [group_id, application_id] = [await group(), await application()]
    await must('POST', `${IAM}/groups/${group_id}/add-member`, { application_id })
    return { path: `${IAM}/groups/${group_id}/remove-member`, body: { application_id } }
  }
  const rule = { permission_set_names: ['IAMReadOnly'], organization_id: own }
  type Recipe = () => Promise<{ path?: string; query?: string; body?: unknown }>

  /** What cannot be told from the path: bodies with something in them, and queries that must be there. */
  const recipes: Record<string, Recipe> = {
    'POST /account/v3/projects': async () => ({ body: { name: name() } }),
    'PATCH /account/v3/projects/:project_id': async () => ({ body: { description: 'changed' } }),
    'GET /cockpit/v1/regions/:region/data-sources': async () => ({ query: `?project_id=${own}` }),
    [`POST ${IAM}/applications`]: async () => ({ body: { name: name() } }),
    [`PATCH ${IAM}/applications/:application_id`]: async () => ({ body: { description: 'changed' } }),
    [`POST ${IAM}/users`]: async () => ({ body: { email: `${name()}@example.com` } }),
    [`PATCH ${IAM}/users/:user_id`]: async () => ({ body: { first_name: 'Jane' } }),
    [`POST ${IAM}/users/:user_id/update-username`]: async () => ({ body: { username: name() } }),
    [`POST ${IAM}/users/:user_id/update-password`]: async () => ({ body: { password: 'a long password of theirs' } }),
    [`POST ${IAM}/groups`]: async () => ({ body: { name: name() } }),
    [`PATCH ${IAM}/groups/:group_id`]: async () => ({ body: { description: 'changed' } }),
    [`PUT ${IAM}/groups/:group_id/members`]: async () => ({ body: { user_ids: [], application_ids: [await application()] } }),
    [`POST ${IAM}/groups/:group_id/add-members`]: async () => ({ body: { user_ids: [await user()], application_ids: [] } }),
    [`POST ${IAM}/groups/:group_id/add-member`]: async () => ({ body: { application_id: await application() } }),
    [`POST ${IAM}/groups/:group_id/remove-member`]: member,
    [`POST ${IAM}/policies`]: async () => ({ body: { name: name(), application_id: await application(), rules: [rule] } }),
    [`PATCH ${IAM}/policies/:policy_id`]: async () => ({ body: { description: 'changed' } }),
    [`GET ${IAM}/rules`]: async () => ({ query: `?policy_id=${await made(`${IAM}/policies`, { name: name(), no_principal: true })}` }),
    [`PUT ${IAM}/rules`]: async () => ({
      body: { policy_id: await made(`${IAM}/policies`, { name: name(), no_principal: true }), rules: [rule] },
    }),
    [`POST ${IAM}/api-keys`]: async () => ({ body: { application_id: await application() } }),
    [`PATCH ${IAM}/api-keys/:access_key`]: async () => ({ body: { description: 'changed' } }),
    [`PATCH ${IAM}/organizations/:organization_id/security-settings`]: async () => ({ body: { login_attempts_before_locked: 9 } }),
    [`GET ${IAM}/quota`]: async () => ({ query: `?organization_id=${own}` }),
    [`GET ${IAM}/quota/:quotum_name`]: async () => ({ query: `?organization_id=${own}` }),
    'POST /parvis/v1/organizations': async () => ({ body: { name: name() } }),
    'PATCH /parvis/v1/organizations/:organization_id': async () => ({ body: { state: 'suspended' } }),
    'POST /parvis/v1/models': async () => ({ body: { ...chat, name: name() } }),
    'PATCH /parvis/v1/models/:model_name': async () => ({ body: { description: 'changed' } }),
    'POST /parvis/v1/models/:model_name/prices': async () => ({ body: { input: '1', output: '2' } }),
    'PUT /parvis/v1/engines/:engine_name': async () => ({
      body: { url: 'http://127.0.0.1:9/changed', key: SECRET, models: [{ model: await model() }] },
    }),
    'PUT /parvis/v1/limits/organizations/:organization_id': async () => ({ body: { requests_per_minute: 7 } }),
    'PUT /parvis/v1/limits/organizations/:organization_id/tier': async () => ({ body: { tier: 'none' } }),
    'PUT /parvis/v1/tiers/:tier/limits': async () => ({ body: { requests_per_minute: 29 } }),
    'PUT /parvis/v1/limits/projects/:project_id': async () => ({ body: { tokens_per_minute: 10 } }),
    'PUT /parvis/v1/budgets': async () => ({ body: { unit: 'money', period: 'month', amount: 5 } }),
    'POST /parvis/v1/usage-shares': async () => ({
      body: { project_id: own, expires_at: new Date(Date.now() + 3_600_000).toISOString() },
    }),
    'POST /billing/v2/budgets': async () => {
      await must('DELETE', `/billing/v2/budgets/${await budget()}`)
      return { body: { consumption_limit: 100 } }
    },
    'PATCH /billing/v2/budgets/:budget_id': async () => ({ body: { consumption_limit: 200 } }),
    'POST /billing/v2/budget-alerts': async () => {
      await must('DELETE', `/billing/v2/budget-alerts/${await alert()}`)
      return { body: { budget_id: await budget(), threshold: 80 } }
    },
    'PATCH /billing/v2/budget-alerts/:budget_alert_id': async () => ({ body: { threshold: 90 } }),
    'POST /billing/v2/budget-alert-notifications': async () => ({
      body: { budget_alert_id: await alert(), email_addresses: ['a@example.com'] },
    }),
    'PATCH /billing/v2/budget-alert-notifications/:budget_alert_notification_id': async () => ({
      body: { webhook_urls: ['https://example.com/hook-of-theirs-2'] },
    }),
    'POST /cockpit/v1/regions/:region/data-sources': async () => ({ body: { project_id: own, name: name(), type: 'logs' } }),
    'PATCH /cockpit/v1/regions/:region/data-sources/:data_source_id': async () => ({ body: { name: name() } }),
    'POST /cockpit/v1/regions/:region/tokens': async () => ({
      body: { project_id: own, name: name(), token_scopes: ['read_only_metrics'] },
    }),
    'POST /cockpit/v1/grafana/users': async () => ({ body: { project_id: own, login: name(), role: 'viewer' } }),
    'DELETE /cockpit/v1/grafana/users/:grafana_user_id': async () => ({ query: `?project_id=${own}` }),
    'POST /cockpit/v1/regions/:region/alert-manager/contact-points': async () => {
      await withAlertManager()
      return { body: { project_id: own, email: { to: `${name()}@example.com` } } }
    },
    'PATCH /cockpit/v1/regions/:region/alert-manager/contact-points': async () => {
      await withAlertManager()
      return { body: { project_id: own, email: await contact(), send_resolved_notifications: true } }
    },
    'POST /cockpit/v1/regions/:region/alert-manager/contact-points/delete': async () => {
      await withAlertManager()
      return { body: { project_id: own, email: await contact() } }
    },
    'PATCH /cockpit/v1/plans': async () => ({ body: { project_id: own, plan_name: 'free' } }),
  }

  /** In Cockpit the project stands in the body or in the query, also where nothing else does. */
  const usual = (route: KnownRoute): { query?: string; body?: unknown } => {
    if (!route.path.startsWith('/cockpit/')) return route.body === undefined ? {} : { body: {} }
    return route.body === undefined ? { query: `?project_id=${own}` } : { body: { project_id: own } }
  }

  /** A call of the route that its owner succeeds with, on something made for it. */
  const callOf = async (route: KnownRoute): Promise<Call> => {
    const recipe = recipes[`${route.method} ${route.path}`]
    const said: { path?: string; query?: string; body?: unknown } =
      recipe === undefined ? usual(route) : { ...usual(route), ...(await recipe()) }
    let path = said.path ?? route.path
    for (const [, param = ''] of path.matchAll(/:(\w+)/g)) path = path.replace(`:${param}`, (await params[param]?.(route)) ?? randomUUID())
    return { method: route.method, path: `${path.replace(/\*$/, 'anything')}${said.query ?? ''}`, body: said.body }
  }

  return { ask, must, callOf, own, knows: (name: string) => name in params }
}

/** Must stand in no answer but that to who gave it, and in no table. */
export const SECRET = 'a-secret-of-an-engine'

export type Calls = ReturnType<typeof openCalls>

/** Routes that end something for the caller, or need what only a person with a letter has: their own tests call them. */
export const APART: ReadonlySet<string> = new Set([
  'POST /parvis/v1/sign-in',
  'POST /parvis/v1/sign-in/renew',
  'POST /parvis/v1/sign-out',
  'POST /parvis/v1/invitations/accept',
  'POST /parvis/v1/password-resets',
  'POST /parvis/v1/password-resets/accept',
  // It needs a mail server, and changes nothing: src/cockpit.
  'POST /cockpit/v1/regions/:region/alert-manager/trigger-test-alert',
  'POST /iam/v1alpha1/jwts',
  'GET /iam/v1alpha1/jwts',
  'GET /iam/v1alpha1/jwts/:jti',
  'DELETE /iam/v1alpha1/jwts/:jti',
  // An invoice is made by the end of a month: test/billing-sdk.test.ts.
  'GET /billing/v2beta1/invoices/:invoice_id',
  'GET /billing/v2beta1/invoices/:invoice_id/download',
  // The models of the inference API have ids of the hosted catalogue: test/inference-sdk.test.ts.
  'GET /inference/v1/regions/:region/models/:model_id',
  'DELETE /inference/v1/regions/:region/models/:model_id',
])

/** A route that always refuses has nothing to succeed with. */
export const alwaysRefuses = ({ answer, refuses }: KnownRoute): boolean =>
  refuses?.includes('not_implemented') === true || answer?.def.type === 'never'
