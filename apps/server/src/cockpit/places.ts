import type { ProjectId } from '../kit/ids.ts'

/** Under which addresses things of a project are reached. Clients put a path behind each, so none ends in a slash (control-plane.md 8.1). */
export type Places = {
  source(source: { readonly id: string; readonly type: string; readonly region: string }): string
  alertManager(projectId: ProjectId, region: string): string
  grafana(projectId: ProjectId): string
}

/** Host names of their own where the operator has a domain for them, else paths of this server. */
export const placesOf = (domain: string | undefined, publicUrl: () => string): Places =>
  domain === undefined
    ? {
        source: ({ id }) => `${publicUrl()}/cockpit/data-sources/${id}`,
        alertManager: (projectId) => `${publicUrl()}/cockpit/alert-managers/${projectId}`,
        grafana: (projectId) => `${publicUrl()}/cockpit/dashboards/${projectId}`,
      }
    : {
        source: ({ id, type, region }) => `https://${id}.${type}.cockpit.${region}.${domain}`,
        alertManager: (projectId, region) => `https://${projectId}.alertmanager.cockpit.${region}.${domain}`,
        grafana: (projectId) => `https://${projectId}.dashboard.cockpit.${domain}`,
      }
