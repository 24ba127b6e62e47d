export type Picture = { readonly url: string; readonly detail?: string | null | undefined }

type Part = { type: 'text'; text: string } | { type: 'image_url'; image_url: { url: string; detail?: string } }
type Call = { id: string; type: 'function'; function: { name: string; arguments: string } }
type Message =
  | { role: 'system'; content: string }
  | { role: 'user'; content: string | Part[] }
  | { role: 'assistant'; content: string | null; tool_calls?: Call[] }
  | { role: 'tool'; tool_call_id: string; content: string }

/** What a user's turn is made of: words and images, in order. */
export type Said = { readonly text: string } | { readonly picture: Picture }

export type Conversation = {
  system(text: string): void
  user(said: readonly Said[]): void
  assistant(text: string): void
  call(id: string, name: string, args: string): void
  result(id: string, text: string, pictures: readonly Picture[]): void
  messages(): readonly Message[]
}

/**
 * Builds the messages of a chat from dialects that have other units. Chat templates are strict about the order: one system message
 * and it comes first, calls stand in the assistant's turn, their results follow directly.
 */
export const openConversation = (): Conversation => {
  const messages: Message[] = []
  // A result is text in a chat; what it showed follows in a turn of the user's, once all results are there.
  let shown: Picture[] = []

  const show = (): void => {
    if (shown.length === 0) return
    const parts = shown.map((picture) => toPart({ picture }))
    shown = []
    messages.push({ role: 'user', content: parts })
  }

  return {
    system(text) {
      show()
      const last = messages.at(-1)
      if (last?.role === 'system') last.content += `\n\n${text}`
      else messages.push({ role: 'system', content: text })
    },
    user(said) {
      const parts = [...shown.map((picture) => ({ picture })), ...said].map(toPart)
      shown = []
      const [only] = parts
      if (only === undefined) messages.push({ role: 'user', content: '' })
      else messages.push({ role: 'user', content: parts.length === 1 && only.type === 'text' ? only.text : parts })
    },
    assistant(text) {
      show()
      messages.push({ role: 'assistant', content: text })
    },
    call(id, name, args) {
      show()
      const called: Call = { id, type: 'function', function: { name, arguments: args } }
      const last = messages.at(-1)
      if (last?.role !== 'assistant') messages.push({ role: 'assistant', content: null, tool_calls: [called] })
      else if (last.tool_calls === undefined) last.tool_calls = [called]
      else last.tool_calls.push(called)
    },
    result(id, text, pictures) {
      messages.push({ role: 'tool', tool_call_id: id, content: text })
      shown.push(...pictures)
    },
    messages() {
      show()
      return messages
    },
  }
}

const toPart = (said: Said): Part =>
  'text' in said
    ? { type: 'text', text: said.text }
    : {
        type: 'image_url',
        image_url: { url: said.picture.url, ...(typeof said.picture.detail === 'string' ? { detail: said.picture.detail } : {}) },
      }

export const textOf = (said: readonly Said[]): string => said.map((part) => ('text' in part ? part.text : '')).join('')

export const picturesOf = (said: readonly Said[]): Picture[] => said.flatMap((part) => ('picture' in part ? [part.picture] : []))

/** The fields without those that were not given. */
export const given = (fields: Record<string, unknown>): Record<string, unknown> =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined && value !== null))
