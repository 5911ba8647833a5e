/** `parts`: table, or schema and table, in exact case */
export function quoteTable(parts: readonly string[]): string {
  return parts.map(quoteIdentifier).join('.')
}

/** A text as it stands in a statement, whatever standard_conforming_strings says. Text of PostgreSQL's has no U+0000. */
export function quoteLiteral(text: string): string {
  const quoted = `'${text.replaceAll("'", "''")}'`
  return text.includes('\\') ? ` E${quoted.replaceAll('\\', '\\\\')}` : quoted
}

export function quoteIdentifier(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}
