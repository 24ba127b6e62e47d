import { Template } from '@huggingface/jinja'

/** What a template raised itself (`raise_exception`), or why it cannot render what it was given: a sentence for the caller. */
export class TemplateError extends Error {}

export type ChatTemplate = {
  readonly source: string
  readonly renderer: 'llama.cpp' | 'jinja'
  render(values: Record<string, unknown>): string
}

type NativeRenderer = { render(values: Record<string, unknown>): string }
/** Inside of node-llama-cpp 3.22.1, reached here and nowhere else; `template.test.ts` fails when a new version has moved it. */
type Internals = { _bindings?: { AddonJinjaRenderer?: new (template: string) => NativeRenderer } }

const RAISED = /Jinja Exception: ([\s\S]*)$/

const raisedOrWhole = (error: unknown): string => {
  const message = error instanceof Error ? error.message : String(error)
  return (RAISED.exec(message)?.[1] ?? message).trim()
}

/**
 * llama.cpp's own Jinja engine renders every published template that was tried, @huggingface/jinja nine of ten; so the
 * second one only steps in where the first cannot be reached or does not understand the template.
 */
export const openTemplate = (llama: unknown, source: string): ChatTemplate => {
  const Native = (llama as Internals)._bindings?.AddonJinjaRenderer
  let native: NativeRenderer | undefined
  try {
    if (typeof Native === 'function') native = new Native(source)
  } catch {
    native = undefined // it does not compile there; the other engine says what is wrong, if it cannot either
  }
  if (native !== undefined) {
    const renderer = native
    return {
      source,
      renderer: 'llama.cpp',
      render: (values) => {
        try {
          return renderer.render(values)
        } catch (error) {
          throw new TemplateError(raisedOrWhole(error), { cause: error })
        }
      },
    }
  }
  const template = new Template(source)
  return {
    source,
    renderer: 'jinja',
    render: (values) => {
      try {
        return template.render(values)
      } catch (error) {
        throw new TemplateError(raisedOrWhole(error), { cause: error })
      }
    },
  }
}
