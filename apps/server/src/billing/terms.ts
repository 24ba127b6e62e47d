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

type Settings = {
  readonly freeTokens: number
  readonly freeAudioSeconds: number
  readonly freePeriod: 'monthly' | 'lifetime'
  readonly region: string
  readonly taxName: string
  readonly taxPercent: string
  readonly sellerName: string
  readonly billGraceHours: number
  readonly invoiceDueDays: number
}

const MILLISECONDS = 1_000n

/** "5.5" is 550: moved by two digits, never multiplied. */
const basisPointsOf = (percent: string): number => {
  const [whole = '0', fraction = ''] = percent.split('.')
  return Number(whole + fraction.padEnd(2, '0'))
}

export const termsOf = (settings: Settings): Terms => ({
  freePools: { tokens: BigInt(settings.freeTokens), audio: BigInt(settings.freeAudioSeconds) * MILLISECONDS },
  freePeriod: settings.freePeriod,
  region: settings.region,
  taxName: settings.taxName,
  taxBasisPoints: basisPointsOf(settings.taxPercent),
  sellerName: settings.sellerName,
  graceHours: settings.billGraceHours,
  dueDays: settings.invoiceDueDays,
})
