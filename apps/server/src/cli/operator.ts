import { userInfo } from 'node:os'
import type { By } from '../audit/record.ts'

/** In containers the user often has a number and no name. */
const userName = (): string => {
  try {
    return userInfo().username
  } catch {
    return String(process.getuid?.() ?? 'unknown')
  }
}

/** Who it was, for the audit: whoever may run commands on this machine. */
export const operatorHere = (): Exclude<By, string> => ({
  name: 'operator on this machine',
  ip: '',
  userAgent: `parvis, run by ${userName()}`,
})
