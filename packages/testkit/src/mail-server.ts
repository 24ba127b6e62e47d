import { type AddressInfo, createServer, type Server } from 'node:net'

export type MailServer = Awaited<ReturnType<typeof openMailServer>>

/** A mail server that takes everything, or answers to the next recipients what stands in `refusals`. */
export const openMailServer = async () => {
  const mails: string[] = []
  const refusals: string[] = []
  const server: Server = createServer((socket) => {
    let inData = false
    let text = ''
    let rest = ''
    const say = (line: string): void => void socket.write(`${line}\r\n`)
    say('220 scripted')
    socket.on('error', () => undefined)
    socket.on('data', (chunk: Buffer) => {
      rest += chunk.toString()
      for (let end = rest.indexOf('\r\n'); end >= 0; end = rest.indexOf('\r\n')) {
        const line = rest.slice(0, end)
        rest = rest.slice(end + 2)
        if (inData && line === '.') {
          inData = false
          mails.push(text)
          say('250 taken')
        } else if (inData) text += `${line}\n`
        else if (line.startsWith('DATA')) {
          inData = true
          text = ''
          say('354 go on')
        } else if (line.startsWith('RCPT') && refusals.length > 0) say(refusals.shift() ?? '')
        else if (line.startsWith('QUIT')) socket.end('221 bye\r\n')
        else say('250 ok')
      }
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  return { url: `smtp://127.0.0.1:${port}`, mails, refusals, close: () => new Promise((resolve) => server.close(resolve)) }
}
