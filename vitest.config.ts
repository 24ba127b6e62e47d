import { defineConfig } from 'vitest/config'

const conditions = ['@parvis/source']
const shared = { resolve: { conditions }, ssr: { resolve: { conditions, externalConditions: conditions } } }
const test = { pool: 'forks' as const, testTimeout: 30_000, hookTimeout: 60_000 }

// `plain` needs nothing but Node. `house` starts a Postgres once for the run and fails without it.
export default defineConfig({
  test: {
    maxWorkers: 2,
    projects: [
      {
        ...shared,
        test: { ...test, name: 'plain', include: ['apps/engine/src/**/*.test.ts', 'packages/*/src/**/*.test.ts', 'apps/server/src/{kit,inference,engines,catalog,usage,quota}/**/*.unit.test.ts', 'scripts/**/*.test.ts', 'apps/server/test/**/*.unit.test.ts'] },
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
