import { isUtf8 } from 'node:buffer'
import { constants } from 'node:fs'
import { type FileHandle, open, stat } from 'node:fs/promises'
import { InvalidConfigError } from '../../db/errors.ts'

const blockBytes = 64 * 1024

/** A file of records for the time of one read; `size` is what it had when it was opened, in bytes. */
export type OpenFile = { readonly path: string; readonly size: number; readonly handle: FileHandle }

/**
 * Opens the file, hands it over and closes it again, however `use` ends. Throws InvalidConfigError where there is no
 * such file, where it may not be read, and where it is something else than a file.
 */
export async function withFile<T>(path: string, use: (file: OpenFile) => Promise<T>): Promise<T> {
  const handle = await openFile(path)
  try {
    return await use({ path, size: (await handle.stat()).size, handle })
  } finally {
    await handle.close()
  }
}

async function openFile(path: string): Promise<FileHandle> {
  try {
    // Asked before: opening a named pipe for reading waits until someone writes to it.
    if (!(await stat(path)).isFile()) throw new InvalidConfigError([`${path} is not a file`])
    return await open(path, constants.O_RDONLY)
  } catch (error) {
    throw explain(path, error)
  }
}

function explain(path: string, error: unknown): unknown {
  const code = error instanceof Error && 'code' in error ? error.code : undefined
  if (code === 'ENOENT' || code === 'ENOTDIR') {
    const advice = 'put it there, on every host where a worker of this batch runs, or correct the path'
    return new InvalidConfigError([`there is no file ${path}: ${advice}`], { cause: error })
  }
  if (code === 'EACCES' || code === 'EPERM') {
    const advice = 'let the user that the worker runs as read it'
    return new InvalidConfigError([`the file ${path} may not be read: ${advice}`], { cause: error })
  }
  return error
}

/** The bytes from `start` to before `end`. Throws InvalidConfigError if the file became shorter meanwhile. */
export async function bytesOf(file: OpenFile, start: number, end: number): Promise<Buffer> {
  const buffer = Buffer.allocUnsafe(end - start)
  for (let filled = 0; filled < buffer.length; ) {
    const { bytesRead } = await file.handle.read(buffer, filled, buffer.length - filled, start + filled)
    if (bytesRead === 0) throw new InvalidConfigError([`${file.path} became shorter while it was read`])
    filled += bytesRead
  }
  return buffer
}

/** The file from `start` to its end, in blocks; each is a buffer of its own, which the receiver may keep. */
export async function* blocksOf(file: OpenFile, start: number): AsyncGenerator<Buffer, void, void> {
  for (let at = start; at < file.size; at += blockBytes) {
    yield await bytesOf(file, at, Math.min(at + blockBytes, file.size))
  }
}

/** How many bytes of byte order mark the file begins with: 3 or 0. */
export async function bomBytes(file: OpenFile): Promise<number> {
  const head = await bytesOf(file, 0, Math.min(3, file.size))
  return head.equals(Buffer.from('\uFEFF')) ? 3 : 0
}

export async function isUtf8At(file: OpenFile, start: number, end: number): Promise<boolean> {
  return isUtf8(await bytesOf(file, start, end))
}

/** The number, from 1, of the first line at or after the offset that is not empty. Reads the file up to there. */
export async function lineAt(file: OpenFile, offset: number): Promise<number> {
  let line = 1
  let at = 0
  for await (const block of blocksOf(file, 0)) {
    for (const byte of block) {
      if (at >= offset && byte !== 0x0a && byte !== 0x0d) return line
      if (byte === 0x0a) line++
      at++
    }
  }
  return line
}
