import { expect, test } from 'vitest'
import { differences, RECORDED, type Recorded } from './shape.ts'

// What compares our answers with the contract's examples must see each way in which they can differ.

const example = {
  id: '105b0000-64c0-48ab-899d-868455867ecf',
  name: 'acme',
  at: '2026-06-10T16:12:40.585516Z',
  url: 'https://example.com',
  count: 3,
  rate: 0.2,
  quantity: '7745',
  period: '604800s',
  gone: null,
  items: [{ open: true }],
}
const recorded: Recorded = { section: '0', what: 'a thing', example, nullable: { gone: 'date' }, optional: ['period'], extra: ['newer'] }

test('what has the same names, types and formats has no differences', () => {
  const { period: _period, ...shorter } = example
  for (const ours of [
    example,
    shorter,
    { ...example, newer: 1, gone: '2026-01-01T00:00:00Z', name: example.id, rate: 1, quantity: '-0.90', at: '2026-06-10T16:12:40Z' },
  ])
    expect(differences(recorded, ours)).toEqual([])
})

test.each([
  ['another name', { nmae: 'acme' }, 'nmae: answered, not recorded'],
  ['a name that is missing', { name: undefined }, 'name: text recorded, undefined answered (undefined)'],
  ['a number as text', { count: '3' }, 'count: integer recorded, decimal answered ("3")'],
  ['a fraction of a count', { count: 3.5 }, 'count: integer recorded, number answered (3.5)'],
  ['text as a number', { quantity: 7745 }, 'quantity: decimal recorded, integer answered (7745)'],
  ['an id that is none', { id: 'acme' }, 'id: uuid recorded, text answered ("acme")'],
  ['an id in capitals', { id: example.id.toUpperCase() }, `id: uuid recorded, text answered ("${example.id.toUpperCase()}")`],
  ['a date without a zone', { at: '2026-06-10T16:12:40' }, 'at: date recorded, text answered ("2026-06-10T16:12:40")'],
  ['an empty date', { gone: '' }, 'gone: date recorded, text answered ("")'],
  ['null where nothing may be', { at: null }, 'at: must not be null'],
  ['a slash at the end of an address', { url: 'https://example.com/' }, 'url: url recorded, text answered ("https://example.com/")'],
  ['a list of nothing', { items: [] }, 'items: nothing to compare'],
  ['another item further down', { items: [{ open: true }, { open: 'yes' }] }, 'items[].open: boolean recorded, text answered ("yes")'],
  ['one thing for a list', { items: { open: true } }, 'items: array recorded, object answered ({"open":true})'],
])('%s is a difference', (_what, change, difference) => {
  expect(differences(recorded, { ...example, ...change })).toEqual([difference])
})

test('a null in an example says what else it may be, and every example stands under its section', () => {
  expect(differences({ ...recorded, nullable: {} }, example)).toEqual(['gone: null in the example, and nobody says what else it may be'])
  for (const { section, what } of RECORDED) expect([what, section]).toEqual([what, expect.stringMatching(/^\d+(\.\d+)?$/)])
  expect(RECORDED.length).toBeGreaterThan(70)
})
