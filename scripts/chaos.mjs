// Kills the built server and its engine under load and then compares what clients have seen with the books.
//
//   npm run chaos                        20 kills, as CI does it
//   npm run chaos -- --kills 200
//   npm run chaos -- --minutes 60
//   npm run chaos -- --seed 1234         the same moments and the same requests again, as far as a machine repeats itself
//
// Beside kills the database goes away for a while, and at the end the disk is full once. The last line is "N passed, N failed".
import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { appendFileSync, chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { createServer, request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as after } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { fail, prepare, ROOT } from './lib.mjs'

const MODEL = 'chaos-chat'
const SELF = fileURLToPath(import.meta.url)

// ── The engine, a process of its own: as many tokens as asked for, and it writes down whom it has worked for.

const engine = (port, servedFile) => {
  const answer = async (incoming, outgoing) => {
    if (incoming.url === '/health') return outgoing.end('{"status":"ok"}')
    if (incoming.method === 'GET') {
      outgoing.setHeader('content-type', 'application/json')
      return outgoing.end(JSON.stringify({ object: 'list', data: [{ id: MODEL, object: 'model', created: 0, owned_by: 'chaos' }] }))
    }
    const pieces = []
    for await (const piece of incoming) pieces.push(piece)
    const asked = JSON.parse(Buffer.concat(pieces).toString())
    const id = incoming.headers['x-request-id']
    appendFileSync(servedFile, `${id}\n`)
    const tokens = asked.max_completion_tokens ?? asked.max_tokens
    const usage = (said) => ({
      prompt_tokens: asked.messages[0].content.length,
      completion_tokens: said,
      total_tokens: asked.messages[0].content.length + said,
    })
    const head = { id: `chatcmpl-${id}`, created: 1, model: MODEL }
    if (asked.stream !== true) {
      await after(tokens)
      outgoing.setHeader('content-type', 'application/json')
      const message = { role: 'assistant', content: 'word '.repeat(tokens) }
      return outgoing.end(
        JSON.stringify({
          ...head,
          object: 'chat.completion',
          choices: [{ index: 0, message, finish_reason: 'stop' }],
          usage: usage(tokens),
        }),
      )
    }
    outgoing.setHeader('content-type', 'text/event-stream')
    const say = (choices, more = {}) =>
      outgoing.write(`data: ${JSON.stringify({ ...head, object: 'chat.completion.chunk', choices, ...more })}\n\n`)
    for (let said = 1; said <= tokens && !outgoing.destroyed; said += 1) {
      say([{ index: 0, delta: { content: 'word ' }, finish_reason: null }], { usage: usage(said) })
      await after(2)
    }
    say([{ index: 0, delta: {}, finish_reason: 'stop' }])
    say([], { usage: usage(tokens) })
    return outgoing.end('data: [DONE]\n\n')
  }
  createServer((incoming, outgoing) => {
    outgoing.on('error', () => undefined)
    void answer(incoming, outgoing).catch(() => outgoing.destroy())
  }).listen(port, '127.0.0.1')
}

if (process.argv[2] === 'engine') engine(Number(process.argv[3]), process.argv[4])
else await chaos()

/** Numbers that look random and are the same for the same seed (mulberry32). */
function openRandom(seed) {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

async function chaos() {
  const given = process.argv.slice(2)
  const option = (name) => {
    const at = given.indexOf(`--${name}`)
    if (at < 0) return undefined
    const value = Number(given[at + 1])
    if (!Number.isFinite(value) || value < 0) fail(`--${name} takes a number.`)
    return value
  }
  const seed = option('seed') ?? Math.floor(Math.random() * 2 ** 31)
  const minutes = option('minutes')
  const kills = option('kills') ?? (minutes === undefined ? 20 : Number.POSITIVE_INFINITY)
  const endsAt = performance.now() + (minutes ?? Number.POSITIVE_INFINITY) * 60_000
  prepare()
  console.log(`seed ${seed}`)

  const random = openRandom(seed)
  const between = (least, most) => least + random() * (most - least)
  const pick = (list) => list[Math.floor(random() * list.length)]

  const { addModel } = await import('@parvis/server/catalog/models')
  const { addEngine } = await import('@parvis/server/engines/registry')
  const { bootstrap } = await import('@parvis/server/iam/bootstrap')
  const { createKey } = await import('@parvis/server/iam/keys')
  const { systemClock } = await import('@parvis/server/kit/clock')
  const { openDb } = await import('@parvis/server/kit/db')
  const { newId } = await import('@parvis/server/kit/ids')
  const { openLog } = await import('@parvis/server/kit/log')
  const { migrate } = await import('@parvis/server/kit/migrate')
  const { openEmbeddedPostgres } = await import('@parvis/server/kit/postgres')
  const { openSecrets } = await import('@parvis/server/kit/secrets')
  const { openProxy } = await import('@parvis/testkit/proxy')

  const total = { passed: 0, failed: 0 }
  const check = (promise, wrong) => {
    const holds = wrong.length === 0
    total[holds ? 'passed' : 'failed'] += 1
    console.log(
      `${holds ? '✓' : '✗'} ${promise}${holds ? '' : `\n  ${wrong.slice(0, 5).join('\n  ')}${wrong.length > 5 ? `\n  … ${wrong.length} in all` : ''}`}`,
    )
  }
  // The limit only ends what hangs: it is not the machine that is tried here.
  const until = async (what, holds, limitMs = 300_000) => {
    for (const startedAt = performance.now(); !(await holds()); await after(25)) {
      if (performance.now() - startedAt > limitMs) throw new Error(`not within ${limitMs} ms: ${what()}`)
    }
  }

  const scratch = mkdtempSync(join(tmpdir(), 'parvis-chaos-'))
  chmodSync(scratch, 0o711) // as root, the database runs as another user
  const dataDir = join(scratch, 'server')
  const servedFile = join(scratch, 'served')
  const log = openLog('silent')
  const toClose = [async () => rmSync(scratch, { recursive: true, force: true })]
  const children = new Set()
  const start = (args, options) => {
    const child = spawn(args[0], args.slice(1), { cwd: ROOT, ...options })
    children.add(child)
    child.ended = new Promise((resolve) =>
      child.on('close', (code) => {
        children.delete(child)
        resolve(code)
      }),
    )
    return child
  }

  try {
    const postgres = await openEmbeddedPostgres({ dataDir: join(scratch, 'database'), log, clock: systemClock })
    toClose.push(postgres.close)
    const db = openDb(postgres.url, { log })
    toClose.push(() => db.end())
    await migrate(db)
    const target = new URL(postgres.url)
    const way = await openProxy({ host: target.hostname, port: Number(target.port) })
    toClose.push(way.close)
    target.port = String(way.port)

    const freePort = () =>
      new Promise((resolve) => {
        const probe = createServer().listen(0, '127.0.0.1', () => {
          const { port } = probe.address()
          probe.close(() => resolve(port))
        })
      })
    const [port, enginePort] = [await freePort(), await freePort()]

    // Two projects, three keys, one model: enough that a mix-up would show.
    const secrets = await openSecrets({ dataDir, masterKey: undefined })
    const ownerSecret = randomUUID()
    const owner = await bootstrap(db, secrets, systemClock, { secretKey: ownerSecret, log })
    const { rows } = await db.query('select owner_id from installation')
    const ownerId = rows[0].owner_id
    const secondProject = newId(systemClock.now())
    await db.query('insert into project (id, organization_id, name) values ($1, $2, $3)', [secondProject, owner.organizationId, 'second'])
    const keys = [ownerSecret]
    for (const description of ['one', 'two']) {
      const key = await createKey(db, secrets, {
        organizationId: owner.organizationId,
        principalId: ownerId,
        description,
        expiresAt: null,
        actor: 'chaos',
      })
      keys.push(key.secretKey)
    }
    // What is counted here shall be limited by nothing but the machine.
    for (const name of ['tokens_per_minute', 'requests_per_minute', 'concurrent_requests']) {
      await db.query(`insert into quota_limit (scope, subject, model, name, value) values ('organization', $1, '*', $2, null)`, [
        owner.organizationId,
        name,
      ])
    }
    const modelId = await addModel(db, systemClock, 'chaos', {
      name: MODEL,
      ownedBy: 'chaos',
      type: 'chat',
      contextTokens: 4096,
      maxOutputTokens: 256,
      features: { tools: false, structuredOutput: false, reasoning: false, vision: false },
      price: { input: 150_000n, output: 350_000n },
    })
    await addEngine(
      { db, secrets, clock: systemClock },
      {
        name: 'chaos',
        url: `http://127.0.0.1:${enginePort}`,
        bearer: undefined,
        models: [{ modelId, modelName: MODEL, remoteName: MODEL }],
      },
      'chaos',
    )

    const startEngine = () =>
      start([process.execPath, SELF, 'engine', String(enginePort), servedFile], { stdio: ['ignore', 'ignore', 'inherit'] })
    let said = ''
    /** `shell` stands before the server: it limits the size of a file, which is how a disk gets full here. */
    const startServer = async (shell = 'exec "$0" "$@"') => {
      const env = {
        ...process.env,
        PARVIS_DATA_DIR: dataDir,
        PARVIS_PORT: String(port),
        PARVIS_DATABASE_URL: target.href,
        PARVIS_DEMO_MODELS: 'false',
        PARVIS_LOG_LEVEL: 'warn',
      }
      const command = ['/bin/sh', '-c', shell, process.execPath, join(ROOT, 'apps', 'server', 'bin', 'parvis.mjs'), 'serve']
      const child = start(command, { env, stdio: ['ignore', 'ignore', 'pipe'] })
      child.stderr.on('data', (chunk) => {
        said = `${said}${chunk}`.slice(-20_000)
      })
      return child
    }
    const ask = async (path) => {
      const response = await fetch(`http://127.0.0.1:${port}${path}`).catch(() => undefined)
      return response === undefined ? undefined : { status: response.status, body: await response.text().catch(() => '') }
    }
    const serving = () =>
      until(
        () => `the server serves\n${said}`,
        async () => {
          if (server.exitCode !== null) throw new Error(`the server ended with ${server.exitCode}\n${said}`)
          return (await ask('/health'))?.status === 200
        },
      )

    // ── The clients. Each remembers what it has seen, by the id in the header of the answer.

    const seen = []
    let loading = true
    let pausing = false
    const call = () => {
      const stream = random() < 0.6
      const tokens = 1 + Math.floor(random() * 60)
      const leavesAfterBytes = random() < 0.15 ? Math.floor(between(1, 4_000)) : undefined
      const project = random() < 0.5 ? `/${secondProject}` : ''
      const content = 'x'.repeat(1 + Math.floor(random() * 90))
      const body = JSON.stringify({
        model: MODEL,
        max_tokens: tokens,
        messages: [{ role: 'user', content }],
        ...(stream ? { stream: true, stream_options: { include_usage: true } } : {}),
      })
      return new Promise((resolve) => {
        const answer = {
          id: undefined,
          status: 0,
          how: 'refused',
          input: content.length,
          output: tokens,
          project: project === '' ? owner.organizationId : secondProject,
        }
        let over = false
        const done = (how) => {
          if (over) return
          over = true
          answer.how = how
          resolve(answer)
        }
        const sent = request(
          {
            host: '127.0.0.1',
            port,
            path: `${project}/v1/chat/completions`,
            method: 'POST',
            headers: {
              authorization: `Bearer ${pick(keys)}`,
              'content-type': 'application/json',
              'content-length': Buffer.byteLength(body),
            },
          },
          (response) => {
            answer.id = response.headers['x-request-id']
            answer.status = response.statusCode
            let text = ''
            response.on('data', (chunk) => {
              text += chunk
              if (leavesAfterBytes !== undefined && text.length > leavesAfterBytes) {
                done('left')
                sent.destroy()
              }
            })
            response.on('end', () => {
              if (answer.status !== 200) return done('refused')
              // An answer has ended for its client when the last event is there, or when the body can be read.
              const whole = stream ? text.endsWith('data: [DONE]\n\n') && !text.includes('"error"') : isJson(text)
              return done(response.complete && whole ? 'ended' : 'cut')
            })
            response.on('close', () => done('cut'))
            response.on('error', () => done('cut'))
          },
        )
        sent.on('error', () => done('refused'))
        sent.setTimeout(30_000, () => sent.destroy())
        sent.end(body)
      })
    }
    const client = async () => {
      while (loading) {
        const answer = pausing ? undefined : await call()
        if (answer?.id !== undefined) seen.push(answer)
        if (answer?.status !== 200) await after(20)
      }
    }

    let engineChild = startEngine()
    let server = await startServer()
    await serving()
    const clients = Array.from({ length: 12 }, client)
    await until(
      () => 'the first answers',
      () => seen.filter(({ how }) => how === 'ended').length > 20,
    )

    // ── Kills, and a database that goes away, at moments that the seed decides.

    const did = { server: 0, engine: 0, database: 0 }
    // By its size: read anew for every look, the file of an hour would be most of the load.
    const served = () => statSync(servedFile, { throwIfNoEntry: false })?.size ?? 0
    while (did.server + did.engine < kills && performance.now() < endsAt) {
      const before = served()
      await after(between(100, 1_500))
      const what = random()
      if (what < 0.65) {
        did.server += 1
        server.kill('SIGKILL')
        await server.ended
        server = await startServer()
        await serving()
      } else if (what < 0.85) {
        did.engine += 1
        engineChild.kill('SIGKILL')
        await engineChild.ended
        await after(between(0, 500))
        engineChild = startEngine()
      } else {
        did.database += 1
        await way.cut()
        // Half of the time the server dies while its database is away, and starts when it is back.
        const alsoServer = random() < 0.5 && did.server + did.engine < kills
        await after(between(200, 1_500))
        if (alsoServer) {
          did.server += 1
          server.kill('SIGKILL')
          await server.ended
        }
        await way.mend()
        if (alsoServer) {
          server = await startServer()
          await serving()
        }
      }
      await until(
        () => `work goes on\n${said}`,
        () => served() > before,
      )
    }
    console.log(`${did.server} kills of the server, ${did.engine} of the engine; the database was away ${did.database} times`)

    // ── A full disk: no file may grow beyond 32 KiB, until it may again.

    pausing = true
    server.kill('SIGTERM')
    await server.ended
    server = await startServer('ulimit -S -f 64; exec "$0" "$@"')
    await serving()
    pausing = false
    let noticed = false
    await until(
      () => 'the journal is full',
      async () => (noticed = (await ask('/ready'))?.body.includes('"journal":"missing"') === true),
    )
    check('with a full disk the server says that it is not ready', noticed ? [] : ['/ready did not say so'])
    await until(
      () => 'requests are refused',
      () => seen.at(-1)?.status === 503,
    )
    const raised = start(['prlimit', '--pid', String(server.pid), '--fsize=unlimited:'], { stdio: 'ignore' })
    await raised.ended
    const ended = seen.length
    await until(
      () => 'answers end again',
      () => seen.slice(ended).some(({ how }) => how === 'ended'),
    )
    check('and serves again once there is room, without a restart', [])

    // ── The end: everybody goes home, and the books are opened.

    loading = false
    await Promise.all(clients)
    server.kill('SIGTERM')
    const code = await server.ended
    check('the server stops in order', code === 0 ? [] : [`code ${code}\n${said}`])
    // What the last life began and did not end is found by the next one. What a stop has no time for, on a slow machine, the next one ships.
    let left = []
    for (let lives = 0; lives < 3 && (lives === 0 || left.length > 0); lives += 1) {
      server = await startServer()
      await serving()
      server.kill('SIGTERM')
      await server.ended
      left = readdirSync(join(dataDir, 'usage')).filter(
        (name) => name.endsWith('.journal') || name.endsWith('.damaged') || name === 'refused.jsonl',
      )
    }
    check('nothing is left in the journal', left)

    // Only what is compared: an hour leaves so many rows that whole ones would not fit into memory.
    const { rows: events } = await db.query(
      'select id, project_id, model, input_tokens, output_tokens, counted, charged, ended from usage_event',
    )
    const books = new Map(events.map((event) => [event.id, event]))
    const worked = new Set(readFileSync(servedFile, 'utf8').split('\n'))
    const endedSeen = seen.filter(({ how }) => how === 'ended')
    check(
      `${endedSeen.length} answers were seen to their end; each is in the books, charged`,
      endedSeen.filter(({ id }) => books.get(id)?.charged !== true).map(({ id }) => `${id} ${books.get(id)?.ended ?? 'is missing'}`),
    )
    check(
      'with the count, the project and the model that the client had',
      endedSeen.flatMap(({ id, input, output, project }) => {
        const event = books.get(id)
        if (event === undefined) return []
        const right =
          event.input_tokens === BigInt(input) &&
          event.output_tokens === BigInt(output) &&
          event.project_id === project &&
          event.model === MODEL
        return right ? [] : [`${id}: ${input} in, ${output} out; the books have ${event.input_tokens}, ${event.output_tokens}`]
      }),
    )
    check('no request is in the books twice', events.length === books.size ? [] : [`${events.length} rows, ${books.size} ids`])
    check('no client saw the same id twice', new Set(seen.map(({ id }) => id)).size === seen.length ? [] : ['an id came twice'])
    check(
      'nothing is charged that no engine has worked on',
      events.filter(({ id, charged }) => charged && !worked.has(id)).map(({ id }) => id),
    )
    check(
      'nothing is charged that nobody has counted',
      events.filter(({ counted, charged }) => counted === 'none' && charged).map(({ id }) => id),
    )
    const refused = seen.filter(({ status, id }) => status >= 400 && books.get(id)?.charged === true)
    check(
      'nobody is charged for a refusal',
      refused.map(({ id, status }) => `${id} ${status}`),
    )

    // A note that an answer begins is not waited for: one that was cut in the very moment of its beginning may be missing.
    const unseen = seen.filter(({ id, status, how }) => status === 200 && how !== 'ended' && !books.has(id))
    const cut = seen.filter(({ how }) => how === 'cut' || how === 'left').length
    check(
      'answers that were cut are in the books, too, as lost where nobody knows more',
      unseen.length * 50 > cut ? unseen.map(({ id }) => id) : [],
    )

    const { rows: byHand } = await db.query(`
      select coalesce(sum(input_tokens - cached_input_tokens) filter (where charged), 0)::text as input,
             coalesce(sum(output_tokens) filter (where charged), 0)::text as output from usage_event`)
    const { computeTotals } = await import('@parvis/server/usage/totals')
    await computeTotals(db)
    const { rows: totals } = await db.query(`
      select coalesce(sum(units) filter (where kind = 'input_tokens'), 0)::text as input,
             coalesce(sum(units) filter (where kind = 'output_tokens'), 0)::text as output from usage_total`)
    check(
      'the totals are the sum of the books',
      JSON.stringify(byHand) === JSON.stringify(totals) ? [] : [JSON.stringify({ byHand, totals })],
    )

    const count = (how) => events.filter(({ ended: end }) => end === how).length
    console.log(
      `${seen.length} answers begun: ${endedSeen.length} ended, ${seen.filter(({ how }) => how === 'left').length} clients left, ` +
        `${seen.filter(({ how }) => how === 'cut').length} were cut, ${seen.filter(({ how }) => how === 'refused').length} refused`,
    )
    console.log(
      `${events.length} rows: ${count('complete') + count('length')} complete, ${count('client_left')} client_left, ${count('engine_failed')} engine_failed, ` +
        `${count('lost')} lost; ${unseen.length} answers that were begun and cut have no row`,
    )
  } catch (error) {
    total.failed += 1
    console.log(`✗ ${error instanceof Error ? error.stack : String(error)}`)
  } finally {
    for (const child of children) child.kill('SIGKILL')
    for (const close of toClose.toReversed()) await Promise.resolve(close()).catch((error) => console.error(error))
  }
  console.log(`seed ${seed}`)
  console.log(`${total.passed} passed, ${total.failed} failed`)
  process.exit(total.failed === 0 ? 0 : 1)
}

function isJson(text) {
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}
