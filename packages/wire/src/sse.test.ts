import { describe, expect, test } from 'vitest'
import { DONE, eventReader, toEvent } from './sse.ts'

describe('the reader of events', () => {
  test('gives the same events wherever the text is cut', () => {
    const text = `: ping\n\n${toEvent({ a: 'é\n' })}event: error\r\ndata: one\r\ndata: two\r\n\r\nid: 7\n\n${DONE}`
    const whole = eventReader()(text)
    expect(whole).toEqual([
      { name: '', data: '{"a":"é\\n"}' },
      { name: 'error', data: 'one\ntwo' },
      { name: '', data: '[DONE]' },
    ])
    for (let at = 0; at <= text.length; at += 1) {
      const read = eventReader()
      expect([...read(text.slice(0, at)), ...read(text.slice(at))]).toEqual(whole)
    }
  })

  test('keeps half an event for the next piece', () => {
    const read = eventReader()
    expect(read('data: a\n')).toEqual([])
    expect(read('\n')).toEqual([{ name: '', data: 'a' }])
  })

  test('gives up on an event without end', () => {
    const read = eventReader()
    expect(() => {
      for (let megabytes = 0; megabytes < 10; megabytes += 1) read('x'.repeat(1 << 20))
    }).toThrow('an event of more than')
  })
})
