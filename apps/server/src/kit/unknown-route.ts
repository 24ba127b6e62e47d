/** Our router takes doubled slashes for one; a slash at the end is another path. */
const segmentsOf = (path: string): string[] => path.replaceAll(/\/+/g, '/').split('/').slice(1)

const matches = (route: readonly string[], asked: readonly string[]): boolean => {
  if (route.at(-1) === '*') return asked.length >= route.length && matches(route.slice(0, -1), asked.slice(0, route.length - 1))
  return (
    route.length === asked.length &&
    route.every((segment, index) => (segment.startsWith(':') ? asked[index] !== '' : segment === asked[index]))
  )
}

const MAX_PATH_CHARACTERS = 200

/**
 * What there is to say about a path that was asked for in vain: undefined where it has nothing to do with these routes, else the
 * methods it has. HEAD and OPTIONS are there wherever anything is (RFC 9110 §9.1, §9.3.7).
 */
export const lookUp = (
  routes: readonly { readonly method: string; readonly path: string }[],
  url: string,
): { readonly path: string; readonly methods: readonly string[] } | undefined => {
  const path = (url.split('?', 1)[0] ?? '').slice(0, MAX_PATH_CHARACTERS)
  const asked = segmentsOf(path)
  const known = routes.map((route) => ({ method: route.method, segments: segmentsOf(route.path) }))
  if (!known.some(({ segments }) => segments[0] === asked[0])) return undefined
  const methods = known.filter(({ segments }) => matches(segments, asked)).map(({ method }) => method)
  if (methods.length === 0) return { path, methods: [] }
  return { path, methods: [...new Set([...methods, ...(methods.includes('GET') ? ['HEAD'] : []), 'OPTIONS'])] }
}
