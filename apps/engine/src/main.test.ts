import { spawn } from 'node:child_process'
import { createReadStream } from 'node:fs'
import { copyFile, mkdtemp, rm, truncate, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { ENGINE, forkEngine, modelPath, startEngine, until, user } from '../test/engine-process.ts'

const PATH = '/v1/chat/completions'
const TINY = modelPath('tiny-chat', 'tiny-chat-q8_0.gguf')
const question = { temperature: 0, messages: user('What is the capital of France?') }

let folder = ''
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'engine-'))
})
afterAll(() => rm(folder, { recursive: true }))

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

describe('the key', () => {
  test('every route but /health wants it, and a wrong one is answered like none', async () => {
    const engine = await startEngine('tiny-chat', ['--context', '512', '--sequences', '1'], { PARVIS_ENGINE_KEY: 'secret-of-the-test' })
    try {
      expect((await fetch(`${engine.url}/health`)).status).toBe(200)
      expect((await fetch(`${engine.url}/v1/models`)).status).toBe(401)
      const answers = await Promise.all(
        [{}, { authorization: 'Bearer wrong' }, { authorization: 'secret-of-the-test' }].map((headers) =>
          engine.refusal(PATH, question, headers),
        ),
      )
      expect(new Set(answers.map(({ status, error }) => `${status} ${JSON.stringify(error)}`)).size).toBe(1)
      expect(answers[0]).toMatchObject({ status: 401, error: { type: 'AuthenticationError', code: 401 } })
      const right = await engine.ask(PATH, question, { authorization: 'Bearer secret-of-the-test' })
      expect(right.choices[0].message.content).toContain('Paris')
      expect(engine.log()).not.toContain('secret-of-the-test')
      expect(engine.log()).not.toContain('capital')
    } finally {
      expect(await engine.stop()).toBe(0)
    }
  })
})

test('what a schema or a tool says never stands in what the process writes', async () => {
  const engine = await startEngine('tiny-chat', ['--context', '512', '--sequences', '1'])
  try {
    const asSchema = (schema: object) => ({ ...question, response_format: { type: 'json_schema', json_schema: { name: 'x', schema } } })
    const kind = { enum: ['SECRET-DIAGNOSIS'] }
    const tooLong = { type: 'object', properties: { kind, 'SECRET-NAME': { type: 'string', minLength: 1_000_000_000 } } }
    const tools = [{ type: 'function', function: { name: 'SECRET-TOOL', parameters: tooLong } }]
    for (const body of [asSchema(tooLong), { ...question, tools, tool_choice: 'required' }]) {
      const { status, error } = await engine.refusal(PATH, body)
      expect(status).toBe(400)
      expect(error.message).toContain('#/properties/SECRET-NAME/minLength')
    }
    // It fits both branches, which no grammar can prevent and the log tells of.
    const both = {
      type: 'object',
      properties: { 'SECRET-NAME': { oneOf: [kind, { type: 'string', ...kind }] } },
      required: ['SECRET-NAME'],
    }
    const answer = await engine.ask(PATH, asSchema(both))
    expect(JSON.parse(answer.choices[0].message.content)).toEqual({ 'SECRET-NAME': 'SECRET-DIAGNOSIS' })
    await until('the misfit is told', () => engine.log().includes('an answer does not fit its schema'))
    expect(engine.log()).not.toContain('SECRET')
    expect(engine.log()).not.toContain('::=')
  } finally {
    await engine.stop()
  }
})

describe('starting', () => {
  test('it tells its progress and its port, and lists its model', async () => {
    const engine = await startEngine('tiny-chat', ['--context', '512', '--sequences', '2'])
    expect(engine.told[0]).toMatchObject({ type: 'loading' })
    const { data } = (await (await fetch(`${engine.url}/v1/models`)).json()) as { data: object[] }
    expect(data).toHaveLength(1)
    expect(data[0]).toMatchObject({ id: 'tiny-chat', object: 'model', owned_by: 'parvis', max_model_len: 512, type: 'chat' })
    await engine.stop()
  })

  const failure = async (args: readonly string[]): Promise<string> => {
    const engine = forkEngine(args)
    expect(await engine.exited).toBe(1)
    const last = engine.told.at(-1)
    if (last?.type !== 'failed') throw new Error(`it did not say that it failed: ${JSON.stringify(engine.told)}`)
    return last.reason
  }

  test('what is wrong with the command line is named', async () => {
    expect(await failure(['--model', TINY, '--nmae', 'x'])).toContain('--nmae')
    expect(await failure(['--name', 'x'])).toContain('--model')
  })

  test('a file that is missing, is no GGUF or is cut off fails with a clear reason', async () => {
    expect(await failure(['--model', join(folder, 'missing.gguf'), '--name', 'x'])).toContain('missing.gguf cannot be read')
    const rubbish = join(folder, 'rubbish.gguf')
    await writeFile(rubbish, 'this is no model'.repeat(1000))
    expect(await failure(['--model', rubbish, '--name', 'x'])).toContain('not a readable GGUF file')
    const cut = join(folder, 'cut.gguf')
    await copyFile(TINY, cut)
    await truncate(cut, 2_000_000)
    expect(await failure(['--model', cut, '--name', 'x'])).toContain('cut.gguf cannot be loaded')
    expect(await failure(['--model', folder, '--name', 'x'])).toContain('is not a file')
  })

  test('a model that is no reranker says so', async () => {
    expect(await failure(['--model', TINY, '--name', 'x', '--type', 'rerank'])).toContain('rerank')
  })

  test('too little memory is refused with the need and the limit; a little too little makes it smaller', async () => {
    const reason = await failure(['--model', TINY, '--name', 'x', '--memory-mb', '4'])
    expect(reason).toMatch(/needs about \d+ MB .* --memory-mb allows 4 MB/)
    const engine = await startEngine('tiny-chat', ['--context', '2048', '--sequences', '8', '--memory-mb', '40'])
    expect(engine.log()).toContain('made smaller to fit into the memory')
    expect((await engine.ask(PATH, question)).choices[0].message.content).toContain('Paris')
    await engine.stop()
  })

  test('by hand it prints its address, and --help explains', async () => {
    const child = spawn(process.execPath, [
      ...ENGINE.execArgv,
      ENGINE.path,
      '--model',
      TINY,
      '--name',
      'x',
      '--context',
      '512',
      '--sequences',
      '1',
      '--threads',
      '1',
    ])
    let out = ''
    child.stdout.on('data', (data: Buffer) => {
      out += data.toString()
    })
    await until('the address is printed', () => /^http:\/\/127\.0\.0\.1:\d+\n$/.test(out))
    expect((await fetch(`${out.trim()}/health`)).status).toBe(200)
    child.kill('SIGTERM')
    const help = spawn(process.execPath, [...ENGINE.execArgv, ENGINE.path, '--help'])
    let text = ''
    for await (const data of help.stdout) text += String(data)
    expect(text).toContain('--memory-mb')
  })
})

describe('ending', () => {
  test('on SIGTERM it lets a running answer end, takes no new ones, and exits with 0', async () => {
    const engine = await startEngine('tiny-chat', ['--context', '2048', '--sequences', '1'])
    const long = { ...question, max_tokens: 200, ignore_eos: true, stream: true, stream_options: { include_usage: true } }
    const answer = await engine.send(PATH, long)
    let text = ''
    for await (const bytes of answer.body ?? []) {
      if (text === '') engine.child.kill('SIGTERM')
      text += Buffer.from(bytes as Uint8Array).toString()
    }
    expect(text).toContain('"completion_tokens":200')
    expect(text).toMatch(/data: \[DONE\]\n\n$/)
    expect(await engine.exited).toBe(0)
  })

  test('it ends when its parent dies without a word', async () => {
    const parent = spawn(process.execPath, [
      '-e',
      `const child = require('node:child_process').fork(${JSON.stringify(ENGINE.path)}, ${JSON.stringify(['--model', TINY, '--name', 'x', '--context', '512', '--sequences', '1', '--threads', '1'])}, { execArgv: ${JSON.stringify(ENGINE.execArgv)} })
       child.on('message', (message) => { if (message.type === 'ready') console.log(child.pid) })`,
    ])
    let out = ''
    parent.stdout.on('data', (data: Buffer) => {
      out += data.toString()
    })
    await until('the engine is ready', () => /^\d+\n/.test(out))
    const pid = Number(out)
    expect(isAlive(pid)).toBe(true)
    parent.kill('SIGKILL')
    await until('the engine is gone', () => !isAlive(pid))
  })
})

test('a body that is too large is refused, by its length or as soon as it is too long, and the engine goes on', async () => {
  const engine = await startEngine('tiny-chat', ['--context', '512', '--sequences', '1'])
  try {
    const port = Number(new URL(engine.url).port)
    const told = connect(port, '127.0.0.1')
    let answer = ''
    told.on('data', (data: Buffer) => {
      answer += data.toString()
    })
    told.write(`POST ${PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n{`)
    await until('it is refused', () => answer.includes('too large'))
    expect(answer).toContain('400 Bad Request')
    told.destroy()

    // Without a length: 110 MB in chunks, of which not all can be sent before the connection ends.
    const response = await fetch(engine.url + PATH, {
      method: 'POST',
      body: createReadStream('/dev/zero', { end: 110 * 1024 * 1024, highWaterMark: 1 << 20 }) as unknown as ReadableStream,
      duplex: 'half',
    } as RequestInit).catch(() => undefined)
    expect(response?.status ?? 400).toBe(400)
    expect((await engine.ask(PATH, question)).choices[0].message.content).toContain('Paris')
  } finally {
    await engine.stop()
  }
})
