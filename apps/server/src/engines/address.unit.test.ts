import { expect, test } from 'vitest'
import { addressToUrl, readAddress } from './address.ts'

test.each([
  ['http://10.0.0.7:8000', 'http://10.0.0.7:8000', ''],
  ['http://10.0.0.7:8000/', 'http://10.0.0.7:8000', ''],
  ['http://localhost:11434/v1', 'http://localhost:11434', ''],
  ['http://localhost:11434/v1/', 'http://localhost:11434', ''],
  ['https://api.example.com/openai/v1', 'https://api.example.com', '/openai'],
  ['https://api.example.com/a/b//', 'https://api.example.com', '/a/b'],
  ['https://api.example.com/v1/v1', 'https://api.example.com', '/v1'],
  ['HTTP://Example.com:80', 'http://example.com', ''],
  ['http://[::1]:8080/v1', 'http://[::1]:8080', ''],
])('%s is read as %s with the path "%s"', (written, origin, basePath) => {
  expect(readAddress(written)).toEqual({ origin, basePath })
  expect(readAddress(addressToUrl(readAddress(written)))).toEqual(readAddress(addressToUrl({ origin, basePath })))
})

test.each([
  ['', /is not an address/],
  ['localhost:8000', /over http or https/],
  ['10.0.0.7:8000', /is not an address/],
  ['ftp://host', /over http or https/],
  ['http://me:secret@host', /Leave the key out/],
  ['http://host/?key=1', /ends with its path/],
])('%s is refused with what to do', (written, says) => {
  expect(() => readAddress(written)).toThrow(says)
})

test('a key in an address is not repeated in the error', () => {
  expect(() => readAddress('http://me:hunter2@host')).toThrow(expect.not.stringContaining('hunter2'))
})
