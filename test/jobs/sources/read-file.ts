import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import type { Json } from '../../../src/db/json.ts'
import type { Tx } from '../../../src/db/tx.ts'
import type { Chunk, Source } from '../../../src/jobs/source.ts'

// A file source uses no database.
const tx = undefined as unknown as Tx

/** A new file with this content, gone after the test. */
export async function newFile(content: string | Uint8Array): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-file-'))
  onTestFinished(() => rm(dir, { recursive: true }))
  const path = join(dir, 'rows')
  await writeFile(path, content)
  return path
}

/** Throws for a record that cannot be read, as a batch does that sets none aside. */
export async function readChunk<Row>(source: Source<Row>, cursor: Json, limit: number): Promise<Chunk<Row>> {
  const chunk = await source.read(tx, cursor, limit)
  if (chunk.unreadable) throw chunk.unreadable
  return { ...chunk, cursor: JSON.parse(JSON.stringify(chunk.cursor)) as Json }
}

/** All rows and keys, from a cursor to the end, in chunks of these sizes in turn; each from a source made anew. */
export async function readAll<Row>(
  newSource: () => Source<Row>,
  sizes: readonly number[],
  cursor: Json = null,
): Promise<{ rows: Row[]; keys: Json[]; cursors: Json[] }> {
  const rows: Row[] = []
  const keys: Json[] = []
  const cursors: Json[] = [cursor]
  for (let i = 0; ; i++) {
    const chunk = await readChunk(newSource(), cursors.at(-1)!, sizes[i % sizes.length]!)
    rows.push(...chunk.rows)
    keys.push(...chunk.keys)
    cursors.push(chunk.cursor)
    if (chunk.last) return { rows, keys, cursors }
  }
}

export const numbers = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => from + i)
