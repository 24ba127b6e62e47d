#!/usr/bin/env node
import { existsSync } from 'node:fs'

const main = new URL('../dist/main.js', import.meta.url)
if (!existsSync(main)) {
  process.stderr.write('Parvis is not built yet. Run "npm run build" (or "npm start", which builds when needed) and try again.\n')
  process.exit(1)
}
await import(main.href)
