import { expect, test } from 'vitest'
import { addUp, openMetrics, renderFamilies } from './metrics.ts'

test('counters add up by their labels, and are rendered as Prometheus reads them', () => {
  const metrics = openMetrics()
  const refusals = metrics.counter('refusals_total', 'How many were refused.', ['reason', 'model'])
  refusals.add(['tokens', 'a'])
  refusals.add(['tokens', 'a'], 2)
  refusals.add(['requests', 'b "c"\n'])
  metrics.gauge('open', 'How many are open.', []).set([], 7)
  expect(metrics.render()).toBe(
    [
      '# HELP refusals_total How many were refused.',
      '# TYPE refusals_total counter',
      'refusals_total{reason="tokens",model="a"} 3',
      'refusals_total{reason="requests",model="b \\"c\\"\\n"} 1',
      '# HELP open How many are open.',
      '# TYPE open gauge',
      'open 7',
      '',
    ].join('\n'),
  )
})

test('labels that come from requests cannot fill the memory', () => {
  const metrics = openMetrics()
  const counter = metrics.counter('asked_total', 'Asked.', ['model'])
  for (let name = 0; name < 12_000; name += 1) counter.add([`model-${name}`])
  expect(metrics.render().split('\n').length).toBeLessThan(10_010)
  expect(metrics.render()).toContain('asked_total{model="other"} 2000')
})

test('two metrics of one name are a fault', () => {
  const metrics = openMetrics()
  metrics.counter('one_total', '', [])
  expect(() => metrics.gauge('one_total', '', [])).toThrow('one_total')
})

test('metrics of several processes are one: counters are added, and of what must hold everywhere the least counts', () => {
  const processes = [3, 4].map((asked) => {
    const metrics = openMetrics()
    metrics.counter('asked_total', 'Asked.', ['model']).add(['a'], asked)
    metrics.gauge('bytes', 'Bytes.', []).set([], asked)
    metrics.gauge('writable', 'Writable.', [], 'least').set([], asked % 2)
    return metrics
  })
  processes[1]?.counter('only_here_total', 'Only here.', []).add([], 5)
  const text = renderFamilies(addUp(processes.map((metrics) => metrics.families())))
  expect(text.split('\n').filter((line) => !line.startsWith('#'))).toEqual([
    'asked_total{model="a"} 7',
    'bytes 7',
    'writable 0',
    'only_here_total 5',
    '',
  ])
})
