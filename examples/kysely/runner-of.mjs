import { CompiledQuery } from 'kysely'

/** A transaction of Kysely's as `enqueue`, `publish` and `once` take it. */
export function runnerOf(trx) {
  return { query: (text, values) => trx.executeQuery(CompiledQuery.raw(text, values)) }
}
