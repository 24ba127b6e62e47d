import { z } from 'zod'
import type { Described } from '../kit/described.ts'

const JSON_TYPE = 'application/json; charset=utf-8'
const PAGE = 'text/html; charset=utf-8'
const page = (what: string, status = 200) => ({ status, what, content: { [PAGE]: z.string() } })
const absent = { status: 404, what: 'No provider is set.', content: { 'application/json': z.looseObject({}) } }
const refusals = [page('The link is not good any more.', 404), page('Too many tries.', 429)]
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
      answers: [page('A form for a password.'), ...refusals],
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
      answers: [page('The password is set.'), page('The form again, and what is wrong.', 400), page('Too large.', 413), ...refusals],
    },
  ]),
  {
    method: 'GET',
    path: '/oidc/start',
    group: 'Pages',
    summary: 'Leads to the identity provider, where one is set. `organization_id` says where, `return_to` which path of ours to end at.',
    key: 'nobody',
    answers: [{ status: 303, what: 'To the provider.' }, absent, page('The provider cannot be reached.', 503)],
  },
  {
    method: 'GET',
    path: '/oidc/callback',
    group: 'Pages',
    summary: 'Where the identity provider sends people back to.',
    key: 'nobody',
    answers: [
      page('Signed in.'),
      page('Of several organizations, which.', 300),
      { status: 303, what: 'Signed in, and on to the path that was asked for.' },
      page('Not signed in, and why.', 403),
      absent,
      page('Too many failed.', 429),
    ],
  },
]
