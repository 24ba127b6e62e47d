import type { Answer, Content, Document, Operation, Parameter } from './document.ts'
import type { JsonSchema } from './json-schema.ts'

const ESCAPED: Readonly<Record<string, string>> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' }
const escape = (text: string): string => text.replaceAll(/[&<>"']/g, (letter) => ESCAPED[letter] ?? '')
/** `code` in backticks, and nothing else of Markdown. */
const prose = (text: string): string => escape(text).replaceAll(/`([^`]+)`/g, '<code>$1</code>')

const MAX_DEPTH = 12

/** A schema as a type would be written: shorter than JSON Schema, and read by more people. */
export const toType = (schema: JsonSchema, components: Document['components']['schemas'], indent = '', depth = 0): string => {
  const inner = (each: unknown, more = indent): string => toType((each ?? {}) as JsonSchema, components, more, depth + 1)
  if (depth > MAX_DEPTH) return '…'
  const reference = schema['$ref']
  if (typeof reference === 'string') return inner(components[reference.split('/').at(-1) ?? ''])
  if ('const' in schema) return JSON.stringify(schema['const'])
  if (Array.isArray(schema['enum'])) return schema['enum'].map((each) => JSON.stringify(each)).join(' | ')
  const variants = schema['anyOf'] ?? schema['oneOf']
  if (Array.isArray(variants)) return [...new Set(variants.map((each) => inner(each)))].join(' | ')
  if (Array.isArray(schema['allOf'])) return schema['allOf'].map((each) => inner(each)).join(' & ')
  if (Array.isArray(schema['type'])) return schema['type'].join(' | ')
  if (schema['type'] === 'array') return `[${inner(schema['items'])}]`
  if (schema['type'] !== 'object') {
    const format = schema['format'] ?? schema['contentEncoding']
    return typeof schema['type'] !== 'string' ? 'anything' : typeof format === 'string' ? `${schema['type']} (${format})` : schema['type']
  }
  const required = Array.isArray(schema['required']) ? schema['required'] : []
  const fields = Object.entries((schema['properties'] ?? {}) as Record<string, JsonSchema>).map(([name, each]) => {
    const fallback = 'default' in each ? ` = ${JSON.stringify(each['default'])}` : ''
    return `${indent}  ${name}${required.includes(name) ? '' : '?'}: ${inner(each, `${indent}  `)}${fallback}`
  })
  const rest = schema['additionalProperties']
  if (rest !== undefined && rest !== false) fields.push(`${indent}  …: ${inner(rest, `${indent}  `)}`)
  return fields.length === 0 ? '{}' : `{\n${fields.join('\n')}\n${indent}}`
}

// Plain HTML without a script: the policy of the page lets nothing load or run, and the one style is named by its hash.
export const STYLE = `
:root{color-scheme:light dark;--line:#8884;--soft:#8882}
body{font:1rem/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem}
h1{margin-bottom:0}h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}
nav ul{columns:14rem;padding-left:1.2rem}
details{border:1px solid var(--line);border-radius:.4rem;margin:.4rem 0}
summary{cursor:pointer;padding:.4rem .6rem;overflow-wrap:anywhere}
summary b{display:inline-block;min-width:4.5rem;font-family:ui-monospace,monospace}
summary code{font-weight:600}summary span{opacity:.75}
section{padding:0 1rem 1rem}
h3{font-size:1rem;margin:1rem 0 .2rem}
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid var(--line);padding:.2rem .5rem .2rem 0;text-align:left;vertical-align:top}
pre{background:var(--soft);padding:.6rem;border-radius:.4rem;overflow-x:auto;margin:.2rem 0}
code,pre{font:.875rem/1.45 ui-monospace,monospace}
:focus-visible{outline:2px solid Highlight;outline-offset:2px}
`

const parameterRow = ({ name, in: where, required, description = '', schema }: Parameter, document: Document): string => {
  const fallback = 'default' in schema ? `, otherwise <code>${escape(JSON.stringify(schema['default']))}</code>` : ''
  return `<tr><td><code>${escape(name)}</code></td><td>${where}</td><td><code>${escape(toType(schema, document.components.schemas))}</code>${fallback}</td><td>${required ? 'required' : ''}</td><td>${prose(description)}</td></tr>`
}

const contents = (content: Content, document: Document): string =>
  Object.entries(content)
    .map(([type, { schema }]) => `<p><code>${escape(type)}</code></p><pre>${escape(toType(schema, document.components.schemas))}</pre>`)
    .join('')

const isSuccess = (status: string): boolean => /^[23]/.test(status)

const answer = ([status, { description, content = {} }]: [string, Answer], document: Document): string =>
  isSuccess(status)
    ? `<h3>${status}</h3><p>${prose(description)}</p>${contents(content, document)}`
    : `<tr><td>${status === 'default' ? 'others' : status}</td><td>${prose(description)}</td></tr>`

const operation = (method: string, path: string, each: Operation, document: Document): string => {
  const answers = Object.entries(each.responses)
  const parameters =
    each.parameters.length === 0
      ? ''
      : `<h3>Parameters</h3><table><tbody>${each.parameters.map((one) => parameterRow(one, document)).join('')}</tbody></table>`
  const body = each.requestBody === undefined ? '' : `<h3>Body</h3>${contents(each.requestBody.content, document)}`
  const good = answers.filter(([status]) => isSuccess(status)).map((one) => answer(one, document))
  const bad = answers.filter(([status]) => !isSuccess(status)).map((one) => answer(one, document))
  const refusals = bad.length === 0 ? '' : `<h3>Refusals</h3><table><tbody>${bad.join('')}</tbody></table>`
  return `<details id="${escape(each.operationId)}"><summary><b>${method.toUpperCase()}</b> <code>${escape(path)}</code> <span>${prose(each.summary)}</span></summary><section><p>${prose(each.description ?? '')}</p>${parameters}${body}${good.join('')}${refusals}</section></details>`
}

const anchorOf = (tag: string): string => tag.toLowerCase().replaceAll(/[^a-z]+/g, '-')

/** The document for people, in one page that needs nothing else. */
export const makePage = (document: Document): string => {
  const tags = document.tags.map(({ name }) => name).toSorted((a, b) => Number(a === 'Not here') - Number(b === 'Not here'))
  const chapters = tags.map((tag) => {
    const found = Object.entries(document.paths).flatMap(([path, methods]) =>
      Object.entries(methods)
        .filter(([, each]) => each.tags.includes(tag))
        .map(([method, each]) => operation(method, path, each, document)),
    )
    return `<h2 id="${anchorOf(tag)}">${escape(tag)}</h2>${found.join('')}`
  })
  const index = tags.map((tag) => `<li><a href="#${anchorOf(tag)}">${escape(tag)}</a></li>`).join('')
  const introduction = document.info.description
    .split('\n\n')
    .map((text) => `<p>${prose(text)}</p>`)
    .join('')
  return `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>${escape(document.info.title)}: reference</title><style>${STYLE}</style></head><body><header><h1>${escape(document.info.title)}</h1><p>Version ${escape(document.info.version)} · <a href="/parvis/v1/openapi.json">OpenAPI ${document.openapi}</a></p></header><main>${introduction}<nav aria-label="Chapters"><ul>${index}</ul></nav>${chapters.join('')}</main></body></html>`
}
