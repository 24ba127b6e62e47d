/** Where an engine listens: `basePath` stands before `/v1` and has no slash at its end. */
export type Address = { readonly origin: string; readonly basePath: string }

/**
 * Reads the address of an engine as an operator writes it: with `/v1` or without, with a path before it or none.
 * Private addresses are welcome, since only operators give them. What is wrong is said in a sentence.
 */
export const readAddress = (text: string): Address => {
  const hint = 'Write it as http://host:port or https://host/path.'
  if (!URL.canParse(text)) throw new Error(`${JSON.stringify(text)} is not an address. ${hint}`)
  const url = new URL(text)
  if (url.protocol !== 'http:' && url.protocol !== 'https:')
    throw new Error(`An engine is called over http or https, not ${url.protocol} ${hint}`)
  // What stands in an address is shown in lists and logs.
  if (url.username !== '' || url.password !== '') throw new Error('Leave the key out of the address and give it with --key or --key-env.')
  if (url.search !== '' || url.hash !== '') throw new Error(`The address of an engine ends with its path. ${hint}`)
  const path = url.pathname.replace(/\/+$/, '')
  return { origin: url.origin, basePath: path.replace(/\/v1$/, '').replace(/\/+$/, '') }
}

export const addressToUrl = (address: Address): string => `${address.origin}${address.basePath}`
