import type { LlamaGrammar } from 'node-llama-cpp'
import { jsonSchemaToGbnf } from './grammar/json-schema.ts'
import { toolGrammar } from './grammar/tools.ts'
import type { Loaded } from './llama/model.ts'
import type { KnownTool, ToolFormat } from './output/tool-calls.ts'
import { badRequest, fieldInvalid, no, type Outcome, yes } from './refusal.ts'
import type { ChatRequest, Tool } from './schema.ts'

type Chosen = { readonly grammar: LlamaGrammar | undefined; readonly check: ((text: string) => string | undefined) | undefined }

/** A function without parameters takes an empty object. */
export const knownTools = (tools: readonly Tool[] | undefined): KnownTool[] =>
  (tools ?? []).map((tool) => ({ name: tool.function.name, parameters: tool.function.parameters ?? { type: 'object', properties: {} } }))

const KEPT_GRAMMARS = 32 // clients send the same schema again and again; compiling one takes longer than a token

const compiled = new Map<string, LlamaGrammar>()

const compile = async (loaded: Loaded, gbnf: string, field: string): Promise<Outcome<LlamaGrammar>> => {
  const known = compiled.get(gbnf)
  if (known !== undefined) {
    compiled.delete(gbnf)
    compiled.set(gbnf, known) // the order of a Map is that of insertion: the first is the one used longest ago
    return yes(known)
  }
  try {
    const grammar = await loaded.llama.createGrammar({ grammar: gbnf })
    compiled.set(gbnf, grammar)
    const oldest = compiled.keys().next().value
    if (compiled.size > KEPT_GRAMMARS && oldest !== undefined) compiled.delete(oldest)
    return yes(grammar)
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
    const made = toolGrammar(format, tools, name === undefined ? 'required' : { name }, request.parallel_tool_calls ?? true)
    if (!made.ok) return no(fieldInvalid('tools', made.reason))
    const grammar = await compile(loaded, made.gbnf, 'tools')
    return grammar.ok ? yes({ grammar: grammar.value, check: undefined }) : grammar
  }

  const asked = request.response_format
  if (asked === undefined || asked.type === 'text') return yes({ grammar: undefined, check: undefined })
  const made = jsonSchemaToGbnf(asked.type === 'json_object' ? { type: 'object' } : asked.json_schema.schema)
  if (!made.ok) return no(fieldInvalid('response_format', made.reason))
  const grammar = await compile(loaded, made.gbnf, 'response_format')
  return grammar.ok ? yes({ grammar: grammar.value, check: (text) => made.check(text) }) : grammar
}
