import type { z } from 'zod'

/** One kind of answer of an operation. */
export type DescribedAnswer = {
  readonly status: number
  readonly what: string
  /** By content type; none where there is no body. */
  readonly content?: Readonly<Record<string, z.ZodType>>
}

/** An operation that is not registered with `manage`, as the reference tells of it. A check compares the list with the routes of the server. */
export type Described = {
  readonly method: 'GET' | 'POST'
  /** With `:name` for what changes, as the router has it. */
  readonly path: string
  readonly group: string
  readonly summary: string
  /** Which key is asked for. */
  readonly key: 'inference' | 'nobody'
  readonly params?: Readonly<Record<string, string>>
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: { readonly contentType: string; readonly schema: z.ZodType }
  readonly answers: readonly DescribedAnswer[]
}
