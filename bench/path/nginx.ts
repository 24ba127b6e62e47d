import { type SpawnSyncOptions, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Child, endsWithUs, freePort, until } from '../measure.ts'

const BINARY = '/usr/sbin/nginx'
const LARGEST_BODY = '4m'

/** The yardstick is Debian's nginx; where apt may install it, it does, as the tests do with PostgreSQL. */
const ensureNginx = (): void => {
  if (existsSync(BINARY)) return
  if (process.getuid?.() === 0 && existsSync('/usr/bin/apt-get')) {
    console.error('Installing nginx for the benchmark …')
    const quiet: SpawnSyncOptions = { stdio: ['ignore', 'ignore', 'inherit'], env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' } }
    spawnSync('apt-get', ['update', '-qq'], quiet)
    spawnSync('apt-get', ['install', '-y', '-qq', '--no-install-recommends', 'nginx-light'], quiet)
  }
  if (!existsSync(BINARY)) {
    throw new Error(`What we cost is measured against nginx, and there is none at ${BINARY}: install it ("apt-get install nginx-light").`)
  }
}

const start = async (port: number, server: string, more = ''): Promise<Child> => {
  ensureNginx()
  const directory = mkdtempSync(join(tmpdir(), 'parvis-bench-nginx-'))
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((kind) => `${kind}_temp_path ${directory}/${kind};`).join('\n')
  // One process, so that its processor time is all of it.
  writeFileSync(
    join(directory, 'nginx.conf'),
    `daemon off; master_process off; pid ${directory}/pid; error_log stderr error;
events { worker_connections 16384; }
http {
  access_log off; ${temporary}
  client_max_body_size ${LARGEST_BODY}; client_body_buffer_size ${LARGEST_BODY};
  keepalive_requests 1000000000; keepalive_timeout 600s; default_type application/json;
  ${more}
  server { listen 127.0.0.1:${port} backlog=8192; ${server} }
}`,
  )
  const child = endsWithUs(spawn(BINARY, ['-e', 'stderr', '-p', directory, '-c', 'nginx.conf'], { stdio: ['ignore', 'ignore', 'inherit'] }))
  const ended = once(child, 'exit')
  await until('nginx answers', async () => (await fetch(`http://127.0.0.1:${port}/health`)).status > 0)
  return {
    pid: child.pid ?? 0,
    port,
    async stop() {
      child.kill('SIGTERM')
      await ended
      rmSync(directory, { recursive: true, force: true })
    },
  }
}

/** The cheapest engine there is: the same two kilobytes for everybody. */
export const startNginxEngine = async (model: string): Promise<Child> => {
  const models = { object: 'list', data: [{ id: model, object: 'model', created: 1, owned_by: 'bench', max_model_len: 131_072 }] }
  const answer = {
    id: 'chatcmpl-0',
    object: 'chat.completion',
    created: 1,
    model,
    choices: [{ index: 0, message: { role: 'assistant', content: 'x'.repeat(1_700) }, finish_reason: 'stop' }],
    usage: { prompt_tokens: 200, completion_tokens: 400, total_tokens: 600 },
  }
  return start(
    await freePort(),
    `location = /health { return 200 '{}'; }
     location = /v1/models { return 200 '${JSON.stringify(models)}'; }
     location / { return 200 '${JSON.stringify(answer)}'; }`,
  )
}

/** What a proxy in C costs that holds nothing back: connections to the engine are kept, bodies stay in memory. */
export const startNginxProxy = async (enginePort: number): Promise<Child> =>
  start(
    await freePort(),
    `location / { proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 600s; }`,
    `upstream engine { server 127.0.0.1:${enginePort}; keepalive 8192; keepalive_requests 1000000000; keepalive_timeout 600s; }`,
  )
