/** How many bytes of UTF-8 a text takes, if more than `limit`. Most texts are told to be small without being counted. */
export function bytesOver(text: string, limit: number): number | undefined {
  // A UTF-16 unit takes three bytes of UTF-8 at the most.
  if (text.length * 3 <= limit) return undefined
  const bytes = Buffer.byteLength(text)
  return bytes > limit ? bytes : undefined
}
