/** What the header says; `malformed` also for a key that is empty or too long to be one. */
export type KeyHeader = { key: string } | 'missing' | 'malformed'

const maxLength = 255
/** A structured field's string (RFC 9651, section 3.3.3), with parameters behind it, which mean nothing here. */
const quoted =
  /^"((?:[ !#-[\]-~]|\\["\\])*)"(?: *; *[a-z*][a-z0-9_.*-]*(?:=(?:"(?:[ !#-[\]-~]|\\["\\])*"|[^\s",;]+))?)*$/
/** Most clients send it without quotes: visible ASCII but for `"`, `,`, `;` and `\`. Two headers arrive joined by a comma. */
const bare = /^[!#-+\--:<-[\]-~]+$/

/** Reads the field Idempotency-Key (draft-ietf-httpapi-idempotency-key-header). Quoted or bare, the same text is the same key. */
export function parseKeyHeader(header: string | undefined): KeyHeader {
  if (header === undefined) return 'missing'
  const value = header.replace(/^[ \t]+|[ \t]+$/g, '')
  const key = bare.test(value) ? value : quoted.exec(value)?.[1]?.replace(/\\(["\\])/g, '$1')
  return key === undefined || key === '' || key.length > maxLength ? 'malformed' : { key }
}
