import type { Manage } from '../kit/management.ts'
import { alertManagerRoutes } from './alert-manager.ts'
import { dataSourceRoutes } from './data-sources.ts'
import { factRoutes } from './facts.ts'
import { grafanaRoutes } from './grafana.ts'
import type { CockpitRoom } from './shapes.ts'
import { tokenRoutes } from './tokens.ts'

/** Cockpit v1 (control-plane.md 8). */
export const cockpitRoutes = (manage: Manage, room: CockpitRoom): void => {
  dataSourceRoutes(manage, room)
  tokenRoutes(manage, room)
  grafanaRoutes(manage, room)
  alertManagerRoutes(manage, room)
  factRoutes(manage, room)
}
