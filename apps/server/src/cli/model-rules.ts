import type { ModelChange } from '../catalog/change.ts'
import type { Model } from '../catalog/model.ts'

type RulesChange = Pick<ModelChange, 'features' | 'rules'>

type Value = boolean | number | string | readonly string[] | null
type Rule = {
  /** As it is written on the command line. */
  readonly name: string
  readonly what: string
  readonly show: (model: Pick<Model, 'features' | 'rules'>) => Value
  readonly change: (text: string) => RulesChange
}

/** No efforts are known. `none` is one of them, so it cannot stand for that. */
const UNKNOWN = 'unknown'

const yesOrNo = (text: string): boolean => {
  if (text !== 'yes' && text !== 'no') throw new Error(`${JSON.stringify(text)} is neither yes nor no.`)
  return text === 'yes'
}

const numberOrNone = (text: string): number | null => {
  if (text === 'none') return null
  if (!/^[1-9]\d{0,5}$/.test(text)) throw new Error(`${JSON.stringify(text)} is neither a whole number above 0 nor none.`)
  return Number(text)
}

const feature = (name: string, key: keyof Model['features'], what: string): Rule => ({
  name,
  what,
  show: ({ features }) => features[key],
  change: (text) => ({ features: { [key]: yesOrNo(text) } }),
})

const rule = <K extends keyof Model['rules']>(name: string, key: K, read: (text: string) => Model['rules'][K], what: string): Rule => ({
  name,
  what,
  show: ({ rules }) => rules[key],
  change: (text) => ({ rules: { [key]: read(text) } }),
})

/** What can be said of a model with `parvis models rules`. Wrong efforts are refused by the catalogue. */
export const RULES: readonly Rule[] = [
  feature('tools', 'tools', 'yes or no: takes tools'),
  feature('structured-output', 'structuredOutput', 'yes or no: keeps a JSON schema'),
  feature('reasoning', 'reasoning', 'yes or no: thinks before it answers'),
  feature('vision', 'vision', 'yes or no: takes images'),
  rule('audio', 'audioInChat', yesOrNo, 'yes or no: takes sound in a chat'),
  rule('max-images', 'maxImages', numberOrNone, 'the most images in a request, or none'),
  rule('image-token-px', 'imageTokenPx', numberOrNone, 'the side of the square that is one token, or none'),
  rule('image-max-px', 'imageMaxPx', numberOrNone, 'the longest side that it works on, or none'),
  rule('alternating-roles', 'alternatingRoles', yesOrNo, 'yes or no: refuses two turns of a speaker in a row'),
  rule(
    'tool-system-prompt',
    'toolSystemPrompt',
    (text) => (text === 'none' ? null : text),
    'said where tools come without a system message, or none',
  ),
  rule(
    'reasoning-efforts',
    'reasoningEfforts',
    (text) => (text === UNKNOWN ? [] : (text.split(',') as Model['rules']['reasoningEfforts'])),
    'with commas, for example none,low,high; or unknown',
  ),
  rule('min-dimensions', 'minDimensions', numberOrNone, 'the shortest vector, where any length may be asked for, or none'),
]

/** `max-images=12` and so on, as one change. */
export const parseRules = (words: readonly string[]): RulesChange =>
  words.reduce<RulesChange>((change, word) => {
    const [name = '', ...rest] = word.split('=')
    const found = RULES.find((each) => each.name === name)
    if (found === undefined)
      throw new Error(`There is no rule ${JSON.stringify(name)}. There are: ${RULES.map((each) => each.name).join(', ')}.`)
    if (rest.length === 0) throw new Error(`Write it as ${name}=value: ${found.what}.`)
    try {
      const added = found.change(rest.join('='))
      return {
        ...(change.features || added.features ? { features: { ...change.features, ...added.features } } : {}),
        ...(change.rules || added.rules ? { rules: { ...change.rules, ...added.rules } } : {}),
      }
    } catch (error) {
      throw new Error(`${name}: ${error instanceof Error ? error.message : String(error)}`, { cause: error })
    }
  }, {})

/** As it would be written. */
export const sayRule = (value: Value): string => {
  if (typeof value === 'boolean') return value ? 'yes' : 'no'
  if (value === null) return 'none'
  if (typeof value !== 'object') return String(value)
  return value.length === 0 ? UNKNOWN : value.join(',')
}
