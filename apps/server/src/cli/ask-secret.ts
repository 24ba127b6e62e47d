import type { ReadStream } from 'node:tty'

const MAX_CHARACTERS = 4_096
const ENTER = /[\r\n]/
const STOP = '\u0003' // Ctrl-C
const END = '\u0004' // Ctrl-D
const RUBOUT = /[\b\u007f]/

/** One line, without showing it: from a terminal letter by letter, from a pipe as it comes. */
export const askSecret = (question: string, input: NodeJS.ReadStream = process.stdin, say = process.stderr): Promise<string> =>
  new Promise((resolve, reject) => {
    const terminal = input.isTTY ? (input as ReadStream) : undefined
    let letters: string[] = []
    const done = (work: () => void): void => {
      terminal?.setRawMode(false)
      input.off('data', take).off('end', end).off('error', fail).pause()
      if (terminal !== undefined) say.write('\n')
      work()
    }
    const fail = (error: Error): void => done(() => reject(error))
    const end = (): void => done(() => resolve(letters.join('')))
    const take = (text: string): void => {
      for (const letter of Array.from(text)) {
        if (ENTER.test(letter) || letter === END) return end()
        if (letter === STOP) return fail(new Error('Stopped.'))
        if (terminal !== undefined && RUBOUT.test(letter)) letters = letters.slice(0, -1)
        else letters.push(letter)
        if (letters.length > MAX_CHARACTERS) return fail(new Error('That is too long.'))
      }
    }
    if (terminal !== undefined) {
      say.write(question)
      terminal.setRawMode(true)
    }
    input.setEncoding('utf8').on('data', take).on('end', end).on('error', fail).resume()
  })
