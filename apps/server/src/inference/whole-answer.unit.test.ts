import { aModel } from '@parvis/testkit/data-plane'
import { describe, expect, test } from 'vitest'
import type { Answer } from './answer.ts'
import { type Body, bufferToBody, SMALL_PIECE_BYTES } from './body.ts'
import type { Request } from './endpoints/endpoint.ts'
import type { Exchange } from './exchange.ts'
import { wholeAnswer } from './whole-answer.ts'

const REQUEST: Request = {
  enginePath: '',
  stream: false,
  wantsUsage: false,
  estimate: { inputTokens: 0, outputTokens: 0 },
  bytesFor: (): Body => bufferToBody(Buffer.alloc(0)),
  answerKey: 'choices',
}

/** The bytes in chunks of these sizes, again and again. */
const inPieces = (bytes: Buffer, sizes: readonly number[]): Buffer[] => {
  const pieces: Buffer[] = []
  for (let at = 0, turn = 0; at < bytes.length; turn += 1) {
    const piece = bytes.subarray(at, at + (sizes[turn % sizes.length] ?? 1))
    pieces.push(piece)
    at += piece.length
  }
  return pieces
}

/** What goes to the client of an answer that comes in these pieces. */
const read = (open: (exchange: Exchange) => Answer, pieces: readonly Buffer[]): Body => {
  let sent: Body | undefined
  const exchange = {
    hold: () => true,
    answer: (_status: number, body: Body) => {
      sent = body
    },
  } as unknown as Exchange
  const answer = open(exchange)
  for (const piece of pieces) expect(answer.data(piece)).toBeUndefined()
  const verdict = answer.end()
  if ('ending' in verdict) verdict.ending.finish()
  if (sent === undefined) throw new Error(JSON.stringify(verdict))
  return sent
}

const MODEL = aModel()
const chat = (exchange: Exchange): Answer => wholeAnswer(exchange, REQUEST, MODEL, MODEL.name)

describe('the pieces of a whole answer', () => {
  const bytes = Buffer.from(JSON.stringify({ choices: [{ message: { content: 'Hello '.repeat(20_000) } }], usage: { prompt_tokens: 3 } }))

  test.each([
    ['single bytes', [1]],
    ['single bytes between larger pieces', [1, SMALL_PIECE_BYTES]],
    ['bytes in tens and hundreds, large pieces among them', [...Array.from({ length: 60 }, (_, at) => at + 1), 20_000, 700, 3, 9_000]],
  ])('are few, also where an engine sends %s', (_, sizes) => {
    const body = read(chat, inPieces(bytes, sizes))
    expect(Buffer.concat(body.pieces).equals(bytes)).toBe(true)
    expect(body.bytes).toBe(bytes.length)
    expect(body.pieces.length).toBeLessThanOrEqual(2 * Math.ceil(bytes.length / SMALL_PIECE_BYTES))
  })

  test('are the ones that came where they are large: an answer of megabytes is not copied', () => {
    const came = inPieces(bytes, [16 * 1024])
    const { pieces } = read(chat, came)
    expect(pieces.every((piece, at) => piece === came[at])).toBe(true)
    expect(pieces).toHaveLength(came.length)
  })
})
