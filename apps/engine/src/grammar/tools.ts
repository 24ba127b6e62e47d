import { isObject } from '../output/json-text.ts'
import type { KnownTool, ToolFormat } from '../output/tool-calls.ts'
import { automatonRule, intersect, withAllowance, without } from './automaton.ts'
import { type Grammar, literal, openGrammar } from './gbnf.ts'
import { openSchemaRules, type SchemaRules } from './json-schema.ts'
import { attempt, Refused } from './refused.ts'
import { readPattern } from './regular-expression.ts'

export type ToolGrammar = { ok: true; gbnf: string } | { ok: false; reason: string }

const MAX_CALLS = 32 // a model that is made to call tools in parallel must come to an end
const NAME = /^[A-Za-z0-9_.:/-]{1,256}$/ // what the parser of the answers reads as a name

/** What a format needs: the rule of a tool's arguments, and the tool itself. */
type Choice = { tool: KnownTool; given: string }

/** The text around calls: `first` for the first call, `next` between two, and what stands around all of them. */
type Layout = { call(choice: Choice): string; before?: string; between: string; after?: string }

const quoted = (name: string): string => JSON.stringify(name)

const jsonCall =
  (key: string) =>
  ({ tool, given }: Choice) =>
    `${literal(`{"name": ${quoted(tool.name)}, "${key}": `)} ${given} "}"`

/** The ways in which a format writes calls; more than one where models of the same family differ and the format does not say which it is. */
const LAYOUTS: Record<Exclude<ToolFormat, 'qwen3-coder'>, readonly Layout[]> = {
  hermes: [
    {
      call: (choice) => `"<tool_call>\\n" ${jsonCall('arguments')(choice)} "\\n</tool_call>"`,
      between: '"\\n"',
    },
  ],
  llama3: [{ call: jsonCall('parameters'), between: '"; "' }],
  mistral: [
    { before: '"[TOOL_CALLS]" " "? "["', call: jsonCall('arguments'), between: '", "', after: '"]"' },
    { call: ({ tool, given }) => `${literal(`[TOOL_CALLS]${tool.name}[ARGS]`)} ${given}`, between: '' },
  ],
  deepseek: [
    {
      before: literal('<｜tool▁calls▁begin｜>'),
      call: ({ tool, given }) =>
        `${literal('<｜tool▁call▁begin｜>')} (${literal(`function<｜tool▁sep｜>${tool.name}\n\`\`\`json\n`)} ${given} ${literal('\n```')} | ${literal(`${tool.name}<｜tool▁sep｜>`)} ${given}) ${literal('<｜tool▁call▁end｜>')}`,
      between: '"\\n"?',
      after: literal('<｜tool▁calls▁end｜>'),
    },
  ],
  functionary: [
    { call: ({ tool, given }) => `${literal(`${tool.name}\n`)} ${given}`, between: '">>>"' },
    { call: ({ tool, given }) => `${literal(`<function=${tool.name}>`)} ${given} "</function>"`, between: '"\\n"?' },
  ],
}

const oneOrMore = (grammar: Grammar, layout: Layout, choices: readonly Choice[], parallel: boolean): string => {
  const call = grammar.rule('call', choices.map((choice) => layout.call(choice)).join(' | '))
  const more = parallel ? ` ${grammar.repeat(grammar.rule('more', `${layout.between} ${call}`), 0, MAX_CALLS - 1)}` : ''
  return `${layout.before ?? ''} ${call}${more} ${layout.after ?? ''}`.trim()
}

const NO_ARGUMENTS = { type: 'object', properties: {}, additionalProperties: false }
const VALUE_END = '</parameter>'

/** Qwen3-Coder writes a parameter's text without quotes, so that code needs no escapes, and other values as JSON. */
const codeCall = (grammar: Grammar, rules: SchemaRules, tool: KnownTool): string => {
  const schema = tool.parameters ?? NO_ARGUMENTS
  if (!isObject(schema)) throw new Refused('#', 'a schema must be an object')
  for (const keyword of ['$ref', 'allOf', 'anyOf', 'oneOf', 'patternProperties', 'minProperties', 'maxProperties']) {
    if (schema[keyword] !== undefined) throw new Refused(`#/${keyword}`, 'this model writes calls in a form that has no place for it')
  }
  const properties = isObject(schema['properties']) ? schema['properties'] : {}
  const required = new Set(Array.isArray(schema['required']) ? (schema['required'] as unknown[]) : [])
  for (const name of required) {
    if (typeof name !== 'string' || !Object.hasOwn(properties, name))
      throw new Refused('#/required', `there is no property ${JSON.stringify(name)}`)
  }
  const valueOf = (name: string, property: unknown): string => {
    const path = `#/properties/${name}`
    if (!isObject(property) || property['type'] !== 'string') return rules.inside(schema, property, path)
    if (property['enum'] !== undefined || property['const'] !== undefined) {
      // Checked like any other, then written bare.
      rules.inside(schema, property, path)
      const values = [property['const'] ?? property['enum']].flat().filter((value) => typeof value === 'string')
      return `(${values.map(literal).join(' | ')})`
    }
    rules.inside(schema, property, path)
    let text = without(VALUE_END)
    if (typeof property['pattern'] === 'string') {
      const read = readPattern(property['pattern'])
      if (read.ok) text = intersect(text, read.dfa)
    }
    return automatonRule(grammar, 'text', text, 'plain')
  }
  let rest = grammar.rule('parameters', '""')
  for (const [name, property] of Object.entries(properties).toReversed()) {
    if (/[<>\n]/.test(name)) throw new Refused(`#/properties/${name}`, 'this model cannot write such a name')
    const parameter = `${literal(`<parameter=${name}>\n`)} ${valueOf(name, property)} ${literal(`\n${VALUE_END}\n`)} ${rest}`
    rest = grammar.rule('parameters', required.has(name) ? parameter : `${parameter} | ${rest}`)
  }
  return `${literal(`<tool_call>\n<function=${tool.name}>\n`)} ${rest} ${literal('</function>\n</tool_call>')}`
}

/**
 * A grammar that makes a model call a tool (contract 6.5: `tool_choice` "required" or a named function), written as the model's family
 * writes calls. Without `parallel` it is exactly one call.
 */
export const toolGrammar = (
  format: ToolFormat,
  tools: readonly KnownTool[],
  choice: 'required' | { name: string },
  parallel: boolean,
): ToolGrammar => {
  const wanted = choice === 'required' ? tools : tools.filter((tool) => tool.name === choice.name)
  if (wanted.length === 0) {
    return { ok: false, reason: choice === 'required' ? 'there is no tool to call' : `there is no tool ${JSON.stringify(choice.name)}` }
  }
  const grammar = openGrammar()
  const rules = openSchemaRules(grammar)
  const within = <T>(tool: KnownTool, build: () => T): T => {
    const made = attempt(build)
    if (made.ok) return made.value
    throw new Refused(`the parameters of the tool ${JSON.stringify(tool.name)}`, made.reason)
  }
  const made = attempt(() =>
    withAllowance(() => {
      for (const tool of wanted) {
        if (!NAME.test(tool.name)) throw new Refused('tools', `${JSON.stringify(tool.name)} cannot be the name of a tool`)
      }
      if (format === 'qwen3-coder') {
        const call = grammar.rule('call', wanted.map((tool) => within(tool, () => codeCall(grammar, rules, tool))).join(' | '))
        return grammar.text(parallel ? `${call} ${grammar.repeat(grammar.rule('more', `"\\n" ${call}`), 0, MAX_CALLS - 1)}` : call)
      }
      const choices = wanted.map((tool) => ({ tool, given: within(tool, () => rules.root(tool.parameters ?? NO_ARGUMENTS, 'object')) }))
      return grammar.text(LAYOUTS[format].map((layout) => oneOrMore(grammar, layout, choices, parallel)).join(' | '))
    }),
  )
  return made.ok ? { ok: true, gbnf: made.value } : made
}
