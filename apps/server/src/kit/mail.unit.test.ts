import { openMailServer } from '@parvis/testkit/mail-server'
import { expect, test } from 'vitest'
import { openMail } from './mail.ts'

const letter = { id: 'one', to: 'somebody@example.com', subject: 'Hello', lines: ['Hello'] }

test('why a letter was not taken is said without the words of the mail server, which may quote the address', async () => {
  const mail = await openMailServer()
  const send = openMail({ smtpUrl: mail.url, mailFrom: 'parvis@example.com' })
  expect(await send(letter)).toBeUndefined()
  mail.refusals.push(`550 there is nobody called ${letter.to} here`)
  expect(await send(letter)).toBe('the mail server said 550 to RCPT TO')
  await mail.close()
  expect(await send(letter)).toContain('ECONNREFUSED')
})
