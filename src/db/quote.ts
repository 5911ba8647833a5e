/** `parts`: table, or schema and table, in exact case */
export function quoteTable(parts: readonly string[]): string {
  return parts.map(quoteIdentifier).join('.')
}

export function quoteIdentifier(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}
