/** A receiver may ask for a pause; one that asks for a year must not have it. */
const longestMs = 60 * 60 * 1000

/**
 * How long an answer's Retry-After asks to wait, at most an hour: seconds or an HTTP date (RFC 9110, section 10.2.3).
 * Milliseconds; undefined for what is neither.
 */
export function retryAfterMs(header: string | null, now: number): number | undefined {
  const text = header?.trim() ?? ''
  if (/^\d+$/.test(text)) return Math.min(Number(text) * 1000, longestMs)
  if (!/^[A-Za-z]+, .* GMT$/.test(text)) return undefined
  const at = Date.parse(text)
  return Number.isNaN(at) ? undefined : Math.min(Math.max(0, at - now), longestMs)
}
