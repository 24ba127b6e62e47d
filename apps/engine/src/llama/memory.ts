/** Bytes that a model needs with so many sequences of so many tokens. */
export type Estimate = (sequences: number, contextTokens: number) => Promise<number>

export type Fit =
  | { readonly fits: true; readonly sequences: number; readonly contextTokens: number; readonly needBytes: number }
  | { readonly fits: false; readonly needBytes: number }

const LEAST_CONTEXT = 512 // below this a chat has no room for a question and its answer

/**
 * The most sequences and context that stay under the limit. Parallel answers are given up first, by halves, then length of context, by halves:
 * a slow engine is of more use than one that forgets.
 */
export const fitMemory = async (
  estimate: Estimate,
  asked: { readonly sequences: number; readonly contextTokens: number },
  limitBytes: number,
): Promise<Fit> => {
  let { sequences, contextTokens } = asked
  while (true) {
    const needBytes = await estimate(sequences, contextTokens)
    if (needBytes <= limitBytes) return { fits: true, sequences, contextTokens, needBytes }
    if (sequences > 1) sequences = Math.floor(sequences / 2)
    else if (contextTokens / 2 >= LEAST_CONTEXT) contextTokens = Math.floor(contextTokens / 2)
    else return { fits: false, needBytes }
  }
}
