/**
 * How tests tell that two sessions hold the same: by what they say next.
 */
import type { Model } from "../../lib/generate/model.ts"
import type { Session, Token } from "../../lib/generate/session.ts"

export const bytes = (text: string): number[] => [...new TextEncoder().encode(text)]

/** Numbers without a pattern, the same every time. */
export const noise = (length: number, seed = 1): number[] =>
  Array.from({ length }, (_, i) => (Math.imul(i + 1, 2654435761 + 40503 * seed) >>> 13) % 256)

/** The next tokens with the bits of their log-probabilities: equal lists mean equal states, penalty history included. */
export async function next(session: Session, prompt?: readonly number[], maxTokens = 4): Promise<Token[]> {
  const tokens: Token[] = []
  const options = { temperature: 0, repetitionPenalty: 1.3, frequencyPenalty: 0.5, maxTokens }
  for await (const token of session.tokens(prompt, options)) tokens.push(token)
  return tokens
}

/** What a fresh session that was given these ids at once says next. */
export async function fresh(model: Model, ids: readonly number[], maxTokens = 4): Promise<Token[]> {
  using session = model.session()
  return await next(session, ids, maxTokens) // awaited: the session is open until then
}
