import { defineConfig } from 'vitest/config'

const conditions = ['@parvis/source']
const resolve = { conditions, externalConditions: conditions }
// `__vitest__` is where global-setup.ts is loaded; it does not take the conditions of the others.
const shared = { resolve: { conditions }, ssr: { resolve }, environments: { __vitest__: { resolve } } }
// Limits only end what hangs: a machine that others use, too, stalls for seconds. What takes how long is told in bench/.
const test = { pool: 'forks' as const, testTimeout: 120_000, hookTimeout: 120_000, expect: { poll: { timeout: 30_000, interval: 20 } } }

// `plain` needs nothing but Node. `house` starts a Postgres once for the run and fails without it.
export default defineConfig({
  test: {
    maxWorkers: 2,
    projects: [
      {
        ...shared,
        test: {
          ...test,
          name: 'plain',
          include: [
            'apps/engine/src/**/*.test.ts',
            'packages/*/src/**/*.test.ts',
            'apps/server/src/{kit,inference,engines,gateways,catalog,iam,usage,quota,billing,cockpit,deployments,cli}/**/*.unit.test.ts',
            'scripts/**/*.test.ts',
            'apps/server/test/**/*.unit.test.ts',
          ],
        },
      },
      {
        ...shared,
        test: {
          ...test,
          name: 'house',
          include: ['apps/server/src/**/*.test.ts', 'apps/server/test/**/*.test.ts'],
          exclude: ['**/*.unit.test.ts'],
          globalSetup: ['packages/testkit/src/global-setup.ts'],
        },
      },
    ],
  },
})
