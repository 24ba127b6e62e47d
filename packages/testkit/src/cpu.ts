/**
 * What this process has computed so far, in milliseconds of a processor. For work that must not grow out of bounds: unlike the clock
 * it does not run on while others have the processor.
 */
export const cpuMs = (): number => {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1000
}
