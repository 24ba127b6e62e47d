// Embeddings with OpenAI's SDK: which of some texts is nearest to a question, shorter vectors, and the same by /v1/rerank.
// PARVIS_URL=http://127.0.0.1:8080 PARVIS_API_KEY=… node examples/openai-embeddings.mjs
import OpenAI from 'openai'

const url = `${process.env.PARVIS_URL ?? 'http://127.0.0.1:8080'}/v1`
const apiKey = process.env.PARVIS_API_KEY
const client = new OpenAI({ baseURL: url, apiKey })
const model = process.env.PARVIS_EMBEDDING_MODEL ?? 'tiny-embed'

const query = 'a young dog'
const documents = ['the stock market', 'a little puppy', 'an old castle']

// Vectors are of length 1, so their dot product is their likeness.
const dot = (a, b) => a.reduce((sum, value, place) => sum + value * b[place], 0)
const nearest = async (more = {}) => {
  const { data, usage } = await client.embeddings.create({ model, input: [query, ...documents], ...more })
  const [asked, ...vectors] = data.map(({ embedding }) => embedding)
  const scores = vectors.map((vector) => dot(asked, vector))
  return { text: documents[scores.indexOf(Math.max(...scores))], dimensions: asked.length, tokens: usage.total_tokens }
}

console.log('nearest:', await nearest())
// Where the model can be cut (Matryoshka): less to store, and nearly as good.
console.log('shorter:', await nearest({ dimensions: 64 }))

// No part of OpenAI's API, and so of no SDK of theirs.
const answer = await fetch(`${url}/rerank`, {
  method: 'POST',
  headers: { authorization: `Bearer ${apiKey}`, 'content-type': 'application/json' },
  body: JSON.stringify({ model, query, documents, top_n: 1 }),
})
const { results } = await answer.json()
console.log('reranked:', results[0].document.text)
