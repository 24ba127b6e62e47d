import type { LlamaGrammar } from 'node-llama-cpp'
import { jsonSchemaToGbnf } from './grammar/json-schema.ts'
import { toolGrammar } from './grammar/tools.ts'
import type { Loaded } from './llama/model.ts'
import type { KnownTool, ToolFormat } from './output/tool-calls.ts'
import { badRequest, fieldInvalid, no, type Outcome, yes } from './refusal.ts'
import type { ChatRequest, Tool } from './schema.ts'

type Chosen = { readonly grammar: LlamaGrammar | undefined; readonly check: ((text: string) => string | undefined) | undefined }
const NONE: Chosen = { grammar: undefined, check: undefined }

/** A function without parameters takes an empty object. */
export const knownTools = (tools: readonly Tool[] | undefined): KnownTool[] =>
  (tools ?? []).map((tool) => ({ name: tool.function.name, parameters: tool.function.parameters ?? { type: 'object', properties: {} } }))

const KEPT_GRAMMARS = 32 // clients send the same schema again and again, and making a grammar holds up everybody's next token

/** Makes a grammar once per thing it is made from, of which the text is the key; the one used longest ago is forgotten first. */
const kept = new Map<string, Chosen>()

const keep = async (key: string, make: () => Promise<Outcome<Chosen>>): Promise<Outcome<Chosen>> => {
  const known = kept.get(key)
  const made = known === undefined ? await make() : yes(known)
  if (!made.ok) return made
  kept.delete(key)
  kept.set(key, made.value)
  const oldest = kept.keys().next().value
  if (kept.size > KEPT_GRAMMARS && oldest !== undefined) kept.delete(oldest)
  return made
}

const compile = async (
  loaded: Loaded,
  gbnf: string,
  field: string,
  check?: (text: string) => string | undefined,
): Promise<Outcome<Chosen>> => {
  try {
    return yes({ grammar: await loaded.llama.createGrammar({ grammar: gbnf }), check })
  } catch (error) {
    return no(fieldInvalid(field, `it makes no usable grammar: ${error instanceof Error ? error.message : String(error)}`))
  }
}

/** The grammar that an answer must follow, if the request asks for one: a forced tool call first, then a response format. */
export const chooseGrammar = async (loaded: Loaded, request: ChatRequest, format: ToolFormat | undefined): Promise<Outcome<Chosen>> => {
  const choice = request.tool_choice ?? 'auto'
  if (choice !== 'auto' && choice !== 'none') {
    const tools = knownTools(request.tools)
    if (tools.length === 0) return no(fieldInvalid('tool_choice', 'it forces a call, but "tools" has none'))
    const name = choice === 'required' ? undefined : choice.function.name
    if (name !== undefined && !tools.some((tool) => tool.name === name)) {
      return no(fieldInvalid('tool_choice', `there is no tool ${JSON.stringify(name)}`))
    }
    if (format === undefined) return no(badRequest("The model's chat template has no way to call tools.", 'tool_choice'))
    const parallel = request.parallel_tool_calls ?? true
    return keep(JSON.stringify([format, tools, name, parallel]), async () => {
      const made = toolGrammar(format, tools, name === undefined ? 'required' : { name }, parallel)
      return made.ok ? compile(loaded, made.gbnf, 'tools') : no(fieldInvalid('tools', made.reason))
    })
  }

  const asked = request.response_format
  if (asked === undefined || asked.type === 'text') return yes(NONE)
  const schema = asked.type === 'json_object' ? { type: 'object' } : asked.json_schema.schema
  return keep(JSON.stringify(schema), async () => {
    const made = jsonSchemaToGbnf(schema)
    return made.ok
      ? compile(loaded, made.gbnf, 'response_format', (text) => made.check(text))
      : no(fieldInvalid('response_format', made.reason))
  })
}
