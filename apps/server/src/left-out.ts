import type { Denial } from './kit/denial.ts'
import type { KnownRoute, Manage, RouteShape } from './kit/management.ts'
import { no } from './kit/outcome.ts'

type LeftOut = readonly [methods: string, path: string]

const IAM = '/iam/v1alpha1'
const COCKPIT = '/cockpit/v1'
const COCKPIT_REGION = `${COCKPIT}/regions/:region`

/**
 * What clients know and is not here (control-plane.md 12, "skip"). It answers 501 in the shape of every error, since clients take 404
 * for "it is gone" and 5xx for "try again"; 501 is neither. As everywhere, nobody without a key is told anything.
 */
const LEFT_OUT: readonly LeftOut[] = [
  ['GET POST', `${IAM}/ssh-keys`],
  ['GET PATCH DELETE', `${IAM}/ssh-keys/:ssh_key_id`],
  ['POST DELETE', `${IAM}/users/:user_id/mfa-otp`],
  ['POST', `${IAM}/users/:user_id/validate-mfa-otp`],
  ['GET', `${IAM}/users/:user_id/connections`],
  ['POST', `${IAM}/users/:user_id/initiate-connection`],
  ['POST', `${IAM}/users/:user_id/join-connection`],
  ['POST', `${IAM}/users/:user_id/remove-connection`],
  ['GET', `${IAM}/grace-periods`],
  ['POST', `${IAM}/users/:user_id/start-webauthn-registration`],
  ['POST', `${IAM}/users/:user_id/finish-webauthn-registration`],
  ['GET', `${IAM}/users/:user_id/webauthn-authenticators`],
  ['PATCH DELETE', `${IAM}/webauthn-authenticator/:authenticator_id`],
  ['PUT', `${IAM}/organizations/:organization_id/alias`],
  ['PATCH', `${IAM}/organizations/:organization_id/login-methods`],
  ['POST', `${IAM}/organizations/:organization_id/saml`],
  ['PATCH DELETE', `${IAM}/saml/:saml_id`],
  ['GET POST', `${IAM}/saml/:saml_id/certificates`],
  ['GET DELETE', `${IAM}/saml-certificates/:certificate_id`],
  ['POST', `${IAM}/parse-saml-metadata`],
  ['POST', `${IAM}/organizations/:organization_id/scim`],
  ['DELETE', `${IAM}/scim/:scim_id`],
  ['GET POST', `${IAM}/scim/:scim_id/tokens`],
  ['GET DELETE', `${IAM}/scim-tokens/:token_id`],
  ['GET POST', '/account/v3/contract-signatures'],
  ['GET POST PUT PATCH DELETE', '/account/v3/contract-signatures/*'],
  ['POST', '/account/v3/projects/:project_id/project-qualification'],
  ['POST', '/account/v3/projects/:project_id/delete-with-resources'],
  ['GET', '/billing/v2beta1/charges'],
  ['POST', '/billing/v2beta1/redeem-coupon'],
  ['GET POST PUT PATCH DELETE', '/billing/v2beta1/electronic-addresses'],
  ['GET POST PUT PATCH DELETE', '/billing/v2beta1/electronic-addresses/*'],
  ['GET POST', `${COCKPIT_REGION}/exporters`],
  ['GET PATCH DELETE', `${COCKPIT_REGION}/exporters/:exporter_id`],
  ['POST', `${COCKPIT_REGION}/alert-manager/enable-alert-rules`],
  ['POST', `${COCKPIT_REGION}/alert-manager/disable-alert-rules`],
  ['GET', `${COCKPIT}/grafana/product-dashboards`],
  ['GET', `${COCKPIT}/grafana/product-dashboards/:dashboard_name`],
  // Whole products, and the older form of one that is here in its newer form.
  ...['/inference/v1beta1', '/audit-trail', '/environmental-footprint', '/ipam', '/vpc'].map(
    (product): LeftOut => ['GET POST PUT PATCH DELETE', `${product}/*`],
  ),
]

/** Where the addresses that Cockpit names lead (cockpit/places.ts). Who follows one has a token of Cockpit, which is no key: none is asked for. */
const WITHOUT_KEY: readonly LeftOut[] = ['data-sources', 'alert-managers', 'dashboards'].map((what) => [
  'GET POST PUT PATCH DELETE',
  `/cockpit/${what}/*`,
])

export const leftOutRoutes = (manage: Manage): void => {
  leaveOut(manage, LEFT_OUT, { resource: 'organization', action: 'read', scope: 'self' })
  leaveOut(manage, WITHOUT_KEY, 'nobody')
}

const leaveOut = (manage: Manage, paths: readonly LeftOut[], needs: KnownRoute['needs']): void => {
  for (const [methods, path] of paths) {
    for (const method of methods.split(' ') as RouteShape['method'][]) {
      manage({
        method,
        path,
        summary: 'Not here.',
        needs,
        refuses: ['not_implemented'],
        handle: async () => no<Denial>({ type: 'not_implemented' }),
      })
    }
  }
}
