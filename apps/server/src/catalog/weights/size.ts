const UNITS = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'] as const

/** "145 MB", "4.2 GB": decimal units, as disks and hubs count. */
export const formatBytes = (bytes: number): string => {
  let value = bytes
  let unit = 0
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000
    unit += 1
  }
  return `${value < 10 && unit > 0 ? value.toFixed(1) : Math.round(value)} ${UNITS[unit]}`
}
