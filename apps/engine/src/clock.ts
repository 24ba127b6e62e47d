/** The only reader of the wall clock here: everything else measures with `performance.now()`. */
export const unixSeconds = (): number => Math.floor(Date.now() / 1000)
export const isoNow = (): string => new Date(Date.now()).toISOString()
