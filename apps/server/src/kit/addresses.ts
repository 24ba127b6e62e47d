import { BlockList, isIP, isIPv4, isIPv6 } from 'node:net'

/** An IPv4 address in an IPv6 socket is the IPv4 address; the name of an interface is no part of one; empty for what is none. */
export const plainAddress = (text: string): string => {
  const ip = (text.split('%', 1)[0] ?? '').replace(/^::ffff:(?=\d+\.\d+\.\d+\.\d+$)/i, '')
  return isIP(ip) === 0 ? '' : ip
}

const GROUPS_OF_A_NETWORK = 4

/**
 * Whose address it is, as far as can be told: an IPv4 address itself, of IPv6 the /64, which is the least that anybody gets (RFC 6177) and has more addresses
 * than could ever be counted one by one.
 */
export const networkOf = (text: string): string => {
  const ip = plainAddress(text)
  if (!isIPv6(ip)) return ip === '' ? text : ip
  const [head = '', tail] = ip.split('::')
  const before = head === '' ? [] : head.split(':')
  const after = tail === undefined || tail === '' ? [] : tail.split(':')
  // An address that ends like IPv4 writes two groups as one.
  const written = before.length + after.length + (ip.includes('.') ? 1 : 0)
  const groups = [...before, ...Array.from({ length: tail === undefined ? 0 : 8 - written }, () => '0'), ...after]
  return `${groups
    .slice(0, GROUPS_OF_A_NETWORK)
    .map((group) => Number.parseInt(group, 16).toString(16))
    .join(':')}::/64`
}

/** Says whether a connection to this address may be made. It takes addresses only; names are resolved before. */
export type MayReach = (address: string) => boolean

/** What is not the public internet in IPv4 (the IANA registry of special addresses), and one metadata service with an ordinary address. */
const CLOSED_V4 = [
  '0.0.0.0/8', // this network, and for many systems this machine
  '10.0.0.0/8',
  '100.64.0.0/10', // shared by carriers; a cloud's metadata service lies in it too
  '127.0.0.0/8',
  '169.254.0.0/16', // link-local: most metadata services
  '172.16.0.0/12',
  '192.0.0.0/24', // protocol assignments: another metadata service
  '192.0.2.0/24',
  '192.88.99.0/24', // relays of 6to4
  '192.168.0.0/16',
  '198.18.0.0/15',
  '198.51.100.0/24',
  '203.0.113.0/24',
  '224.0.0.0/4', // multicast
  '240.0.0.0/4', // reserved, and the broadcast address
  '168.63.129.16/32', // a cloud's agent and metadata, reachable from every machine in it
]

/** Only this part of IPv6 is the internet: loopback, private, link-local, site-local and multicast all lie outside. */
const OPEN_V6 = '2000::/3'
const CLOSED_V6 = [
  '2001::/23', // protocol assignments, Teredo among them, which carries IPv4 inside
  '2001:db8::/32',
  '2002::/16', // 6to4, which carries IPv4 inside
  '3fff::/20',
]
/** Addresses of IPv4 written as IPv6: mapped, and translated on networks that have only IPv6. What counts is the address inside. */
const MAPPED = rangesOf(['::ffff:0:0/96'])
const TRANSLATED = rangesOf(['64:ff9b::/96'])

const closedV4 = rangesOf(CLOSED_V4)
const openV6 = rangesOf([OPEN_V6])
const closedV6 = rangesOf(CLOSED_V6)

/** The public internet, and what the operator allows besides. */
export const mayReach = (allowed: readonly string[]): MayReach => {
  const ranges = rangesOf(allowed)
  return (address) => {
    const inner = isIPv6(address) ? innerV4(address) : undefined
    return isAllowed(ranges, address) || (inner !== undefined && isAllowed(ranges, inner)) || isPublic(inner ?? address)
  }
}

/** Whether the text is a range like 10.0.0.0/8 or fd00::/8; a single address is one, too. */
export const isRange = (text: string): boolean => {
  const [address = '', prefix, ...rest] = text.split('/')
  const family = isIP(address)
  if (family === 0 || rest.length > 0 || address.includes('%')) return false
  return prefix === undefined || (/^\d{1,3}$/.test(prefix) && Number(prefix) <= (family === 4 ? 32 : 128))
}

/** Where a server that listens there is reached from the same machine. */
export const httpAddress = (host: string, port: number): string =>
  `http://${host.includes(':') ? `[${host}]` : host === '0.0.0.0' ? '127.0.0.1' : host}:${port}`

const isAllowed = (ranges: BlockList, address: string): boolean =>
  isIP(address) !== 0 && ranges.check(address, isIPv4(address) ? 'ipv4' : 'ipv6')

const isPublic = (address: string): boolean => {
  if (isIPv4(address)) return !closedV4.check(address, 'ipv4')
  return isIPv6(address) && openV6.check(address, 'ipv6') && !closedV6.check(address, 'ipv6')
}

const innerV4 = (address: string): string | undefined => {
  if (!MAPPED.check(address, 'ipv6') && !TRANSLATED.check(address, 'ipv6')) return undefined
  // The URL parser writes every spelling of an IPv6 address in one way: eight groups, the longest run of zeros left out.
  const groups = new URL(`http://[${address}]/`).hostname.slice(1, -1).split(':')
  const [high = 0, low = 0] = groups.slice(-2).map((group) => Number.parseInt(group || '0', 16))
  return [high >> 8, high & 0xff, low >> 8, low & 0xff].join('.')
}

function rangesOf(texts: readonly string[]): BlockList {
  const ranges = new BlockList()
  for (const text of texts) {
    const [address = '', prefix] = text.split('/')
    const family = isIPv4(address) ? 'ipv4' : 'ipv6'
    ranges.addSubnet(address, prefix === undefined ? (family === 'ipv4' ? 32 : 128) : Number(prefix), family)
  }
  return ranges
}
