import type { FreePools } from './rate.ts'

/** What the operator has decided about bills, from the settings. */
export type Terms = {
  /** Units that cost nothing: tokens, and milliseconds of audio. */
  readonly freePools: FreePools
  /** The contract is silent on the period (serverless-platform.md 3.2); `lifetime` gives the pool once to each organization. */
  readonly freePeriod: 'monthly' | 'lifetime'
  readonly region: string
  readonly taxName: string
  /** Hundredths of a percent, so that 5.5 % is a whole number. */
  readonly taxBasisPoints: number
  readonly sellerName: string
  /** How long after its end a month waits for segments that are on their way. */
  readonly graceHours: number
  readonly dueDays: number
}
