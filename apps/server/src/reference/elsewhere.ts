import { z } from 'zod'
import type { Described } from '../kit/described.ts'

const JSON_TYPE = 'application/json; charset=utf-8'
const PAGE = 'text/html; charset=utf-8'
const page = (what: string) => ({ status: 200, what, content: { [PAGE]: z.string() } })
const Ready = z.object({ status: z.enum(['ready', 'not_ready']), checks: z.record(z.string(), z.enum(['ok', 'missing'])) })

/** What is neither the management API nor the data plane: for machines that watch us, and pages for people. */
export const elsewhere: readonly Described[] = [
  {
    method: 'GET',
    path: '/health',
    group: 'Health',
    summary: 'Says that the process lives.',
    key: 'nobody',
    answers: [{ status: 200, what: 'It does.', content: { [JSON_TYPE]: z.object({ status: z.literal('ok'), version: z.string() }) } }],
  },
  {
    method: 'GET',
    path: '/ready',
    group: 'Health',
    summary: 'Says whether requests are served.',
    key: 'nobody',
    answers: [
      { status: 200, what: 'They are.', content: { [JSON_TYPE]: Ready } },
      { status: 503, what: 'They are not, and what is missing.', content: { [JSON_TYPE]: Ready } },
    ],
  },
  {
    method: 'GET',
    path: '/parvis/v1/reference',
    group: 'Pages',
    summary: 'This document as a page.',
    key: 'nobody',
    answers: [page('The page.')],
  },
  ...(['/invitation', '/password-reset'] as const).flatMap((path): Described[] => [
    {
      method: 'GET',
      path,
      group: 'Pages',
      summary: 'The page that the link of a letter leads to.',
      key: 'nobody',
      answers: [page('A form for a password.'), { status: 404, what: 'The link is not good any more.', content: { [PAGE]: z.string() } }],
    },
    {
      method: 'POST',
      path,
      group: 'Pages',
      summary: 'Takes the form of that page.',
      key: 'nobody',
      body: {
        contentType: 'application/x-www-form-urlencoded',
        schema: z.object({ token: z.string(), password: z.string(), again: z.string() }),
      },
      answers: [page('What became of it.'), { status: 404, what: 'The link is not good any more.', content: { [PAGE]: z.string() } }],
    },
  ]),
  {
    method: 'GET',
    path: '/oidc/start',
    group: 'Pages',
    summary: 'Leads to the identity provider, where one is set.',
    key: 'nobody',
    answers: [{ status: 302, what: 'To the provider.' }],
  },
  {
    method: 'GET',
    path: '/oidc/callback',
    group: 'Pages',
    summary: 'Where the identity provider sends people back to.',
    key: 'nobody',
    answers: [{ status: 302, what: 'Signed in.' }, page('What went wrong.')],
  },
]
