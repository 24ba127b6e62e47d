import { setTimeout as after } from 'node:timers/promises'

/** One letter. `id` is the same for every try: mail servers and readers drop what they have had. */
export type Letter = { readonly id: string; readonly to: string; readonly subject: string; readonly lines: readonly string[] }

/** Undefined when the mail server has taken it, else why not. Nothing is thrown. */
export type SendMail = (letter: Letter) => Promise<string | undefined>

/** For connecting, for the greeting, and between two words of the server. */
const SEND_LIMIT_MS = 15_000
/** For all of it: a server may say a word every few seconds for ever. */
const WHOLE_LIMIT_MS = 25_000

/** What a mail server says may quote the address, which belongs in no log: its number and the word it answers to say enough. */
const reasonOf = (error: unknown): string => {
  if (!(error instanceof Error)) return String(error)
  const { responseCode, command } = error as { responseCode?: unknown; command?: unknown }
  return typeof responseCode === 'number' ? `the mail server said ${responseCode} to ${String(command)}` : error.message
}

/** `smtpUrl`: `smtp://user:password@host:587`; without one no e-mail leaves the house. */
export const openMail =
  ({ smtpUrl, mailFrom }: { smtpUrl: string | undefined; mailFrom: string }): SendMail =>
  async ({ id, to, subject, lines }) => {
    if (smtpUrl === undefined) return 'no SMTP server is set: PARVIS_SMTP_URL'
    const { createTransport } = await import('nodemailer') // most never send one, and its source alone is 0.7 MB of memory
    const transport = createTransport({
      url: smtpUrl,
      connectionTimeout: SEND_LIMIT_MS,
      greetingTimeout: SEND_LIMIT_MS,
      socketTimeout: SEND_LIMIT_MS,
      disableFileAccess: true,
      disableUrlAccess: true,
    })
    const late = new AbortController()
    try {
      return await Promise.race([
        transport.sendMail({ from: mailFrom, to, messageId: `<${id}@parvis>`, subject, text: lines.join('\n') }).then(() => undefined),
        after(WHOLE_LIMIT_MS, `the mail server took longer than ${WHOLE_LIMIT_MS / 1000} s`, { signal: late.signal }),
      ])
    } catch (error) {
      return reasonOf(error)
    } finally {
      late.abort()
      transport.close()
    }
  }
