import { createHash } from 'node:crypto'
import { InvalidConfigError } from '../../db/errors.ts'
import type { Json } from '../../db/json.ts'
import { bytesOf, type OpenFile } from './open-file.ts'

/**
 * Where a file source stands, and by what it knows the file again.
 *
 * A file may be appended to between two chunks; what was read of it has to stay. Neither mtime nor inode tells that:
 * both change with an append, or when the file is restored on another host, and a file replaced within one tick of the
 * clock keeps its mtime. So the cursor holds a digest of bytes already read: the first `windowBytes` of the file and
 * the last ones before the offset. Whoever replaces the file by another one changes the first, or shifts the second.
 * The size tells that what was yet to be read was cut off.
 */
export type FileCursor = {
  /** bytes; where the next record begins */
  readonly offset: number
  /** how many records were read */
  readonly record: number
  /** bytes that the file had; it may only grow */
  readonly size: number
  /** SHA-256 in hexadecimal */
  readonly digest: string
}

const windowBytes = 4096

/** The stored cursor, or the beginning. Throws InvalidConfigError where it is not one of a file. */
export function parseFileCursor(stored: Json): Pick<FileCursor, 'offset' | 'record'> & Partial<FileCursor> {
  if (stored === null) return { offset: 0, record: 0 }
  const cursor = stored as { readonly [key in keyof FileCursor]?: Json }
  const { offset, record, size, digest } = cursor
  if (!isCount(offset) || !isCount(record) || !isCount(size) || typeof digest !== 'string') {
    throw new InvalidConfigError([
      `the stored cursor ${JSON.stringify(stored)} is not one of a file: the batch's source was changed while a job of it was under way`,
    ])
  }
  return { offset, record, size, digest }
}

export async function fileCursorAt(file: OpenFile, offset: number, record: number): Promise<FileCursor> {
  return { offset, record, size: file.size, digest: await digestBefore(file, offset) }
}

/** Throws InvalidConfigError unless the file is still the one that the cursor was made of, or that one and more. */
export async function checkSameFile(
  file: OpenFile,
  { offset, size = 0, digest }: Partial<FileCursor> & { offset: number },
): Promise<void> {
  if (file.size < size) {
    refuse(file, `was ${size} bytes long and now has ${file.size}`)
  }
  if (digest !== undefined && digest !== (await digestBefore(file, offset))) {
    refuse(file, `is another one than the ${offset} bytes that were read of it`)
  }
  if (offset === 0 || offset >= file.size) return
  // The last record may have lacked its newline, and then it was taken as it stood.
  const [before, next] = await bytesOf(file, offset - 1, offset + 1)
  if (before !== 0x0a && next !== 0x0a && next !== 0x0d) {
    refuse(file, `had more written to its last line, at byte ${offset}, after that line was read`)
  }
}

function refuse(file: OpenFile, change: string): never {
  throw new InvalidConfigError([
    `${file.path} ${change}, while a job of this batch was under way; only whole lines may be added at its end: put the former file back, or start a new job for the file as it is now`,
  ])
}

async function digestBefore(file: OpenFile, offset: number): Promise<string> {
  const hash = createHash('sha256').update(await bytesOf(file, 0, Math.min(windowBytes, offset)))
  return hash.update(await bytesOf(file, Math.max(0, offset - windowBytes), offset)).digest('hex')
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && Number(value) >= 0
}
