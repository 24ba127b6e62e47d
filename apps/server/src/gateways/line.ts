import { z } from 'zod'
import { ToldEngine } from '../engines/told.ts'
import type { Clock } from '../kit/clock.ts'
import type { Logger } from '../kit/log.ts'

/** What a gateway needs to begin. It has secrets in it, so it comes over the channel and never by the command line. */
const Begin = z.object({
  what: z.literal('begin'),
  number: z.int().min(1),
  gateways: z.int().min(1),
  /** Where people reach us. */
  port: z.int(),
  /** As the house has read them: a file that was changed meanwhile counts at the next start of all. */
  settings: z.unknown(),
  databaseUrl: z.string(),
})

/** What is said and not answered. */
const News = z.discriminatedUnion('what', [
  /** A gateway hears from now on what it is told. */
  z.object({ what: z.literal('here') }),
  Begin,
  /** The children of the house, with this gateway's part of their seats. */
  z.object({ what: z.literal('engines'), engines: z.array(ToldEngine) }),
  z.object({ what: z.literal('listening') }),
  /** It cannot begin, and why. */
  z.object({ what: z.literal('failed'), reason: z.string() }),
  z.object({ what: z.literal('stop') }),
  /** A wrong key or password, for the others. `of` says who counts. */
  z.object({ what: z.literal('failure'), of: z.enum(['keys', 'people']), ip: z.string(), weight: z.number() }),
])

/** What is asked of the house by a gateway, and of each gateway by the house. */
const Question = z.discriminatedUnion('what', [
  z.object({ what: z.literal('metrics') }),
  /** Why usage cannot be written down. */
  z.object({ what: z.literal('journal') }),
  /** Answered when the keys and rights of this version are known there. */
  z.object({ what: z.literal('knowing'), version: z.string() }),
])

const Message = z.discriminatedUnion('type', [
  z.object({ type: z.literal('news'), news: News }),
  z.object({ type: z.literal('question'), id: z.int(), question: Question }),
  z.object({ type: z.literal('answer'), id: z.int(), answer: z.unknown() }),
])

export type Begin = z.infer<typeof Begin>
export type News = z.infer<typeof News>
export type Question = z.infer<typeof Question>

/** The channel of Node between the house and one gateway, seen from either end. */
export type Channel = { send(message: object): void; listen(hear: (message: unknown) => void): void }

export type Line = {
  tell(news: News): void
  /** Undefined when no answer has come in time. */
  ask(question: Question, limitMs: number): Promise<unknown>
}

/** The same on both ends: what comes is checked, and a question that is not answered in time is given up. */
export const openLine = (
  channel: Channel,
  parts: { clock: Clock; log: () => Logger; hear(news: News): void; answer(question: Question): Promise<unknown> },
): Line => {
  const waiting = new Map<number, (answer: unknown) => void>()
  let questions = 0

  channel.listen((raw) => {
    // A connection, or what belongs to another protocol of the channel.
    if (typeof raw !== 'object') return
    const read = Message.safeParse(raw)
    if (!read.success) return parts.log().error('what came from another process of the house cannot be read')
    const message = read.data
    if (message.type === 'news') return parts.hear(message.news)
    const { id } = message
    if (message.type === 'answer') return waiting.get(id)?.(message.answer)
    parts.answer(message.question).then(
      (answer) => channel.send({ type: 'answer', id, answer }),
      (error: unknown) =>
        parts.log().warn({ err: error, question: message.question.what }, 'another process of the house was not answered'),
    )
  })

  return {
    tell: (news) => channel.send({ type: 'news', news }),
    ask: async (question, limitMs) => {
      const id = (questions += 1)
      const ended = new AbortController()
      const late = parts.clock.sleep(limitMs, ended.signal).catch(() => undefined)
      const answered = new Promise<unknown>((resolve) => void waiting.set(id, resolve))
      channel.send({ type: 'question', id, question })
      try {
        return await Promise.race([answered, late])
      } finally {
        waiting.delete(id)
        ended.abort()
      }
    },
  }
}
