/** What the server says to a person once it serves. */
export type Greeting = {
  url: string
  /** The owner's first key, only in the start that made it and only when it was drawn by us. */
  firstKey: { accessKey: string; secretKey: string } | undefined
  models: readonly { name: string; type: string; state: string }[]
  /** A chat model that is ready, for the examples. */
  chatModel: string | undefined
  dataDir: string
  offer: string | undefined
}

const QUESTION = 'What is the capital of France?'

const curl = (greeting: Greeting, model: string): string => {
  // Single quotes keep a shell from reading the JSON; double ones are needed where the shell shall put in the variable.
  const bearer =
    greeting.firstKey === undefined ? '"Authorization: Bearer $PARVIS_API_KEY"' : `'Authorization: Bearer ${greeting.firstKey.secretKey}'`
  const body = JSON.stringify({ model, temperature: 0, messages: [{ role: 'user', content: QUESTION }] })
  return `curl ${greeting.url}/v1/chat/completions -H ${bearer} -H 'Content-Type: application/json' -d '${body}'`
}

const program = (greeting: Greeting, model: string): string => {
  const key = greeting.firstKey === undefined ? 'process.env.PARVIS_API_KEY' : `'${greeting.firstKey.secretKey}'`
  return [
    "node --input-type=module <<'EOF'",
    "import OpenAI from 'openai'",
    `const client = new OpenAI({ baseURL: '${greeting.url}/v1', apiKey: ${key} })`,
    `const messages = [{ role: 'user', content: '${QUESTION}' }]`,
    `const stream = await client.chat.completions.create({ model: '${model}', temperature: 0, stream: true, messages })`,
    "for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? '')",
    'console.log()',
    'EOF',
  ].join('\n')
}

/** Plain text for standard output: the address, the key once, and two examples that work when pasted. */
export const greet = (greeting: Greeting): string => {
  const lines = ['', `Parvis serves at ${greeting.url}`, `Data directory: ${greeting.dataDir}`, '']
  if (greeting.firstKey !== undefined) {
    lines.push(
      'Your API key (this is the only time it is shown; only a hash of it is kept):',
      `  access key  ${greeting.firstKey.accessKey}`,
      `  secret key  ${greeting.firstKey.secretKey}`,
      'To sign in with a password as well: npx parvis users set-password owner',
    )
  } else {
    lines.push('Use an API key of yours: export PARVIS_API_KEY=<secret key>. A new one: npx parvis keys create')
  }
  lines.push('', 'Models:', ...greeting.models.map((model) => `  ${model.name}  (${model.type}, ${model.state})`))
  if (greeting.chatModel !== undefined) {
    lines.push(
      '',
      'Ask it with curl:',
      '',
      curl(greeting, greeting.chatModel),
      '',
      'or with the OpenAI SDK (from this repository, or after "npm install openai"):',
      '',
      program(greeting, greeting.chatModel),
    )
  }
  if (greeting.offer !== undefined) lines.push('', greeting.offer)
  lines.push('', 'Ctrl-C stops it.', '')
  return lines.join('\n')
}
