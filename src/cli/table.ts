/** A title and an aligned table under it; nothing without rows. */
export function section(
  title: string,
  columns: readonly string[],
  rows: readonly (readonly string[])[],
): string {
  return rows.length === 0 ? '' : `${title}\n${table([columns, ...rows])}`
}

export function table(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, i) => Math.max(...rows.map((row) => row[i]?.length ?? 0)))
  return rows
    .map((row) => `  ${row.map((cell, i) => cell.padEnd(widths[i] ?? 0)).join('  ')}`.trimEnd().concat('\n'))
    .join('')
}

/** `45 s`, `12 min`, `3 h`, `5 d`. */
export function age(seconds: number): string {
  const s = Math.max(0, seconds)
  if (s < 120) return `${Math.round(s)} s`
  if (s < 2 * 3600) return `${Math.round(s / 60)} min`
  return s < 48 * 3600 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86_400)} d`
}
