import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { openReasoningSplit, type ReasoningStyle, reasoningStyle } from './reasoning.ts'

const THINK = { open: '<think>', close: '</think>' }

const run = (style: ReasoningStyle, pieces: readonly string[]) => {
  const split = openReasoningSplit(style)
  const out = [...pieces.map((piece) => split.push(piece)), split.end()]
  // Contract 6.7: all reasoning comes before all content.
  const firstContent = out.findIndex(({ content }) => content !== '')
  if (firstContent >= 0) expect(out.slice(firstContent + 1).every(({ reasoning }) => reasoning === '')).toBe(true)
  return { reasoning: out.map((one) => one.reasoning).join(''), content: out.map((one) => one.content).join('') }
}

const HARMONY = {
  open: '<|channel|>analysis<|message|>',
  close: '<|end|><|start|>assistant<|channel|>final<|message|>',
  plain: '<|channel|>final<|message|>',
}

test.each([
  {
    name: 'tags in the answer',
    style: { ...THINK, startsInside: false },
    text: '<think>\nhm\n</think>\n\nYes.',
    reasoning: 'hm',
    content: 'Yes.',
  },
  {
    name: 'space before the tag',
    style: { ...THINK, startsInside: false },
    text: '\n<think>hm</think>Yes.',
    reasoning: 'hm',
    content: 'Yes.',
  },
  {
    name: 'opened by the prompt',
    style: { ...THINK, startsInside: true },
    text: 'hm\n\nhm\n</think>\n\nYes.',
    reasoning: 'hm\n\nhm',
    content: 'Yes.',
  },
  {
    name: 'opened by the prompt and again',
    style: { ...THINK, startsInside: true },
    text: '<think>hm</think>Yes.',
    reasoning: 'hm',
    content: 'Yes.',
  },
  { name: 'closed at once', style: { ...THINK, startsInside: true }, text: '</think>\n\nYes.', reasoning: '', content: 'Yes.' },
  {
    name: 'nothing thought',
    style: { ...THINK, startsInside: false },
    text: '<think>\n\n</think>\n\nYes.',
    reasoning: '',
    content: 'Yes.',
  },
  { name: 'no tags at all', style: { ...THINK, startsInside: false }, text: ' Yes.\n', reasoning: '', content: ' Yes.\n' },
  {
    name: 'an answer about the tag',
    style: { ...THINK, startsInside: false },
    text: 'Use <think>x</think>.',
    reasoning: '',
    content: 'Use <think>x</think>.',
  },
  {
    name: 'the tag again in the answer',
    style: { ...THINK, startsInside: false },
    text: '<think>a</think>b</think><think>c',
    reasoning: 'a',
    content: 'b</think><think>c',
  },
  { name: 'cut while thinking', style: { ...THINK, startsInside: false }, text: '<think>a </thi', reasoning: 'a </thi', content: '' },
  { name: 'cut in the opening tag', style: { ...THINK, startsInside: false }, text: '<thi', reasoning: '', content: '<thi' },
  { name: 'nothing', style: { ...THINK, startsInside: true }, text: '', reasoning: '', content: '' },
  {
    name: 'almost a closing tag',
    style: { ...THINK, startsInside: true },
    text: 'a </thinking> b</think>c',
    reasoning: 'a </thinking> b',
    content: 'c',
  },
  {
    name: 'channels',
    style: { ...HARMONY, startsInside: false },
    text: `${HARMONY.open}hm${HARMONY.close}Yes.`,
    reasoning: 'hm',
    content: 'Yes.',
  },
  {
    name: 'channels without thinking',
    style: { ...HARMONY, startsInside: false },
    text: `${HARMONY.plain}Yes.`,
    reasoning: '',
    content: 'Yes.',
  },
])('$name', ({ style, text, reasoning, content }) => {
  expect(run(style, [text])).toEqual({ reasoning, content })
  expect(run(style, Array.from(text))).toEqual({ reasoning, content })
})

test('the split is the same wherever the text is cut', () => {
  const part = fc.constantFrom('<think>', '</think>', '<', '</', 'think>', '\n', ' ', 'a', 'b\n', '<thi', '</thinking>')
  fc.assert(
    fc.property(fc.array(part, { maxLength: 12 }), fc.boolean(), fc.array(fc.nat(60), { maxLength: 10 }), (parts, startsInside, cuts) => {
      const text = parts.join('')
      const style = { ...THINK, startsInside }
      const whole = run(style, [text])
      const places = [0, ...cuts.filter((cut) => cut < text.length).sort((a, b) => a - b), text.length]
      expect(
        run(
          style,
          places.slice(1).map((end, at) => text.slice(places[at], end)),
        ),
      ).toEqual(whole)
      expect(run(style, Array.from(text))).toEqual(whole)
    }),
    { numRuns: 1000 },
  )
})

test('reasoning is given out while it is written', () => {
  const split = openReasoningSplit({ ...THINK, startsInside: true })
  expect(split.push('Let me')).toEqual({ reasoning: 'Let me', content: '' })
  expect(split.push(' see.\n</')).toEqual({ reasoning: ' see.', content: '' })
  expect(split.push('think>\n')).toEqual({ reasoning: '', content: '' })
  expect(split.push('Yes')).toEqual({ reasoning: '', content: 'Yes' })
})

describe('the style is found in the template', () => {
  test.each([
    {
      name: 'Qwen3',
      template: "{{- message.content.split('</think>')[0] }}",
      prompt: '<|im_start|>assistant\n',
      style: { ...THINK, startsInside: false },
    },
    {
      name: 'DeepSeek R1',
      template: "{{ '<｜Assistant｜><think>\\n' }}",
      prompt: 'Hi<｜Assistant｜><think>\n',
      style: { ...THINK, startsInside: true },
    },
    {
      name: 'thinking switched off',
      template: "'<think>\\n\\n</think>\\n\\n'",
      prompt: '<|im_start|>assistant\n<think>\n\n</think>\n\n',
      style: { ...THINK, startsInside: false },
    },
    {
      name: 'a tag in the question only',
      template: "'<think>' '</think>'",
      prompt: 'what is <think>?<|im_end|>\n<|im_start|>assistant\n',
      style: { ...THINK, startsInside: false },
    },
    {
      name: 'Magistral',
      template: "'[THINK]' + x + '[/THINK]'",
      prompt: '[/INST]',
      style: { open: '[THINK]', close: '[/THINK]', startsInside: false },
    },
    {
      name: 'gpt-oss',
      template: '<|channel|>analysis<|message|>',
      prompt: '<|start|>assistant',
      style: { ...HARMONY, startsInside: false },
    },
  ])('$name', ({ template, prompt, style }) => {
    expect(reasoningStyle(template, prompt)).toEqual(style)
  })
  test('and a template that does not think has none', () => {
    expect(reasoningStyle("{{ '<|im_start|>assistant' }}", '')).toBeUndefined()
  })
})
