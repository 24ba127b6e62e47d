import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Mistral } from '@mistralai/mistralai'
import { aModel, openTicket, startDataPlane } from '@parvis/testkit/data-plane'
import { dataUrl, png } from '@parvis/testkit/media'
import { startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { expect, test } from 'vitest'
import { yes } from '../kit/outcome.ts'
import type { Admit, Estimate } from '../quota/admit.ts'

const OCR = '/v1/ocr'
const PDF = Buffer.from('%PDF-1.7\n1 0 obj\n<<>>\nendobj\n')
const page = (index: number) => ({ index, markdown: `# Page ${index}`, images: [], dimensions: { dpi: 200, height: 2200, width: 1700 } })
const READ = {
  pages: [page(0), page(1)],
  model: 'org/remote',
  document_annotation: null,
  usage_info: { pages_processed: 2, doc_size_bytes: 30 },
}

const start = async (body: unknown = READ, admit?: Admit) => {
  const engine = await startScriptedEngine({ body })
  const server = createServer((request, response) => {
    if (request.url === '/a.pdf') response.end(PDF)
    else if (request.url === '/a.png') response.end(png(5, 5))
    else if (request.url === '/a.html') response.end('<html>')
    else response.writeHead(403).end()
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const plane = await startDataPlane({
    engine: engine.url,
    models: [aModel({ name: 'reader', type: 'ocr', maxOutputTokens: null }), aModel()],
    replica: { remoteModel: 'org/remote' },
    limits: { fetchAllow: ['127.0.0.1'] },
    rooms: admit === undefined ? {} : { admit },
  })
  return {
    engine,
    plane,
    web: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async [Symbol.asyncDispose]() {
      server.close()
      server.closeAllConnections()
      await plane[Symbol.asyncDispose]()
      await engine.close()
    },
  }
}

test("Mistral's own client reads a document by URL, and the engine gets it as data", async () => {
  await using house = await start()
  const client = new Mistral({ apiKey: house.plane.key, serverURL: house.plane.url, retryConfig: { strategy: 'none' } })
  const answer = await client.ocr.process({
    model: 'reader',
    document: { type: 'document_url', documentUrl: `${house.web}/a.pdf` },
    includeImageBase64: true,
  })
  expect(answer.pages.map(({ markdown }) => markdown)).toEqual(['# Page 0', '# Page 1'])
  expect(answer.model).toBe('reader')
  expect(answer.usageInfo).toMatchObject({ pagesProcessed: 2, docSizeBytes: 30 })
  expect(house.engine.requests[0]).toMatchObject({
    path: OCR,
    json: {
      model: 'org/remote',
      document: { type: 'document_url', document_url: dataUrl('application/pdf', PDF) },
      include_image_base64: true,
    },
  })
  expect(house.plane.records).toMatchObject([{ endpoint: 'ocr', counted: 'engine', pages: 2, input: 0, output: 0 }])
})

test.each([
  { type: 'image_url', image_url: 'WEB/a.png' },
  { type: 'image_url', image_url: { url: 'WEB/a.png' } },
  { image_url: dataUrl('image/png', png(5, 5)) },
])('an image is a document, too: %j', async (document) => {
  await using house = await start()
  const text = JSON.stringify({ model: 'reader', document, pages: [0] }).replace('WEB', house.web)
  expect((await house.plane.ask(OCR, text)).status).toBe(200)
  expect(JSON.stringify(house.engine.requests[0]?.json)).toContain(dataUrl('image/png', png(5, 5)))
})

test.each<[string, object, number]>([
  ['a PDF of unknown length', {}, 1_000],
  ['one of which some pages are wanted', { pages: [0, 1, 7] }, 3],
  ['one of which more are wanted than anybody reads', { pages: Array.from({ length: 1_001 }, (_, index) => index) }, 1_000],
  ['one of which a range is wanted', { pages: '0-9' }, 1_000],
  ['one of which ranges are wanted', { pages: [0, '2-900'] }, 1_000],
  ['one of which no page is named', { pages: [] }, 1_000],
  ['a document that has to be fetched', { document: { document_url: 'WEB/a.pdf' } }, 1_000],
  ['an image', { document: { image_url: dataUrl('image/png', png(5, 5)) } }, 1],
])('of %s the most that may be read is held: %j', async (_what, more, pages) => {
  const asked: Estimate[] = []
  await using house = await start(READ, (_caller, _model, estimate) => {
    asked.push(estimate)
    return yes(openTicket([]))
  })
  const document = { document_url: dataUrl('application/pdf', PDF) }
  expect((await house.plane.ask(OCR, JSON.stringify({ model: 'reader', document, ...more }).replace('WEB', house.web))).status).toBe(200)
  expect(asked).toMatchObject([{ inputTokens: 0, outputTokens: 0, pages }])
})

test('pages that are named twice are refused: what is held would be another thing than what is read', async () => {
  await using house = await start()
  const document = JSON.stringify({ document_url: dataUrl('application/pdf', PDF) })
  const answer = await house.plane.ask(OCR, `{"model":"reader","pages":[0],"document":${document},"pages":[0,1]}`)
  expect(answer.status).toBe(400)
  expect(house.engine.requests).toEqual([])
})

test('pages are counted where the engine does not say how many', async () => {
  await using house = await start({ pages: [page(0), page(1), page(2)] })
  const document = { type: 'document_url', document_url: dataUrl('application/pdf', Buffer.concat([PDF, Buffer.alloc(100_000)])) }
  expect((await house.plane.ask(OCR, { model: 'reader', document })).status).toBe(200)
  expect(house.plane.records).toMatchObject([{ pages: 3 }])
})

test.each<[string, object, string, string]>([
  ['a document that is not one', { document: { document_url: 'WEB/a.html' } }, 'document.document_url', 'neither a PDF nor'],
  ['a document that is kept from us', { document: { document_url: 'WEB/secret' } }, 'document.document_url', 'its server answered 403'],
  ['a document inside', { document: { document_url: 'http://10.0.0.1/a.pdf' } }, 'document.document_url', 'not on the public internet'],
  [
    'a document of no kind',
    { document: { document_url: dataUrl('application/pdf', Buffer.from('hello')) } },
    'document.document_url',
    'neither a PDF nor',
  ],
  ['another scheme', { document: { document_url: 'ftp://example.com/a.pdf' } }, 'document.document_url', 'expected a URL'],
  ['a file of a files endpoint', { document: { type: 'file', file_id: '1' } }, 'document.type', 'expected "document_url" or "image_url"'],
  ['two documents', { document: { document_url: 'WEB/a.pdf', image_url: 'http://10.0.0.1/' } }, 'document', 'expected one'],
  ['no document', {}, 'document', 'expected an object'],
  ['a document that is text', { document: 'WEB/a.pdf' }, 'document', 'expected an object'],
  [
    'a model that does not read',
    { model: 'tiny-chat', document: { document_url: 'WEB/a.pdf' } },
    'model',
    'is of type chat and does not serve /v1/ocr',
  ],
])('%s is refused with 400 and no engine is asked', async (_what, ask, param, message) => {
  await using house = await start()
  const answer = await house.plane.ask(OCR, JSON.stringify({ model: 'reader', ...ask }).replaceAll('WEB', house.web))
  expect(answer.status).toBe(400)
  expect(await answer.json()).toMatchObject({ error: { param, message: expect.stringContaining(message) as string } })
  expect(house.engine.requests).toEqual([])
})
