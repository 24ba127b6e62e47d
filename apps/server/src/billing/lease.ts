/**
 * Says in SQL that a row may be taken: nobody has it, or its lease is over. None ends as late as twice the longest; one that does was written before the
 * clock of the database was set back. Twice, since a lease that was taken while this statement waited counts from a later `now()` than this one's.
 */
export const isFree = (longestSeconds: number): string =>
  `(leased_until is null or leased_until < now() or leased_until > now() + make_interval(secs => ${2 * longestSeconds}))`
