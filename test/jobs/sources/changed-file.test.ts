import { execFileSync } from 'node:child_process'
import { appendFile, mkdir, readdir, rm, truncate, writeFile } from 'node:fs/promises'
import { describe, expect, it } from 'vitest'
import { InvalidConfigError } from '../../../src/db/errors.ts'
import type { Json } from '../../../src/db/json.ts'
import { csv } from '../../../src/jobs/sources/csv.ts'
import { ndjson } from '../../../src/jobs/sources/ndjson.ts'
import { newFile, numbers, readAll, readChunk } from './read-file.ts'

const lines = (from: number, to: number) =>
  numbers(from, to)
    .map((n) => `${n},row ${n}\n`)
    .join('')

async function started(content = `n,text\n${lines(1, 2000)}`) {
  const path = await newFile(content)
  return { path, cursor: (await readChunk(csv({ path }), null, 1000)).cursor }
}

/** Why the file is refused at this cursor. */
async function refusal(path: string, cursor: Json): Promise<string> {
  const error: unknown = await readChunk(csv({ path }), cursor, 1000).catch((error: unknown) => error)
  expect(error).toBeInstanceOf(InvalidConfigError)
  expect(String(error)).toContain(path)
  return String(error)
}

describe('a file that changes while a job is under way', () => {
  it('gives the rows that were added', async () => {
    const { path, cursor } = await started()
    await appendFile(path, lines(2001, 2500))
    const { rows, keys } = await readAll(() => csv({ path }), [300], cursor)
    expect(rows.map((row) => Number(row.n))).toEqual(numbers(1001, 2500))
    expect(keys).toEqual(numbers(1001, 2500))
  })

  it('gives the rows that were added after a last line without newline', async () => {
    const { path, cursor } = await started('n,text\n1,a\n2,b')
    await appendFile(path, '\n3,c\n')
    expect((await readAll(() => csv({ path }), [9], cursor)).rows).toEqual([{ n: '3', text: 'c' }])
  })

  it('refuses when the last line it read had more written to it', async () => {
    const { path, cursor } = await started('n,text\n1,a\n2,b')
    await appendFile(path, 'b\n3,c\n')
    expect(await refusal(path, cursor)).toContain('had more written to its last line, at byte 14')
  })

  it('refuses one that was truncated, before and after what was read', async () => {
    const { path, cursor } = await started()
    const { offset, size } = cursor as { offset: number; size: number }
    for (const length of [size - 1, offset + 10, offset, offset - 1, 0]) {
      await truncate(path, length)
      expect(await refusal(path, cursor)).toContain(`was ${size} bytes long and now has ${length}`)
    }
  })

  it.each([
    ['by other rows', `n,text\n${lines(3001, 6000)}`],
    ['by other columns', `text,n\n${lines(1, 2000)}`],
    ['by one with another row among the first', `n,text\n${lines(1, 9)}${lines(1, 2000)}`],
    ['by one with another row in the middle', `n,text\n${lines(1, 500)}x,y\n${lines(501, 2000)}`],
  ])('refuses one that was replaced %s', async (_what, content) => {
    const { path, cursor } = await started()
    await writeFile(path, content)
    expect(await refusal(path, cursor)).toContain('start a new job')
  })

  it('takes a copy with the same content', async () => {
    const { path, cursor } = await started()
    await rm(path)
    await writeFile(path, `n,text\n${lines(1, 2000)}`)
    expect((await readAll(() => csv({ path }), [1000], cursor)).rows).toHaveLength(1000)
  })

  it('refuses one that is gone, and says what to do', async () => {
    const { path, cursor } = await started()
    await rm(path)
    expect(await refusal(path, cursor)).toContain(
      'put it there, on every host where a worker of this batch runs',
    )
  })

  it('refuses what is no file, without waiting for it', async () => {
    const path = await newFile('')
    await rm(path)
    execFileSync('sh', ['-c', 'mkfifo "$0"', path])
    expect(await refusal(path, null)).toContain('is not a file')
    await rm(path)
    await mkdir(path)
    expect(await refusal(path, null)).toContain('is not a file')
  })

  it.each([
    ['a keyset', ['1']],
    ['a number', 7],
    ['half a cursor', { offset: 3 }],
    ['no offset at all', { offset: -1, record: 0, size: 0, digest: '' }],
  ])('refuses the cursor of another source: %s', async (_what, cursor) => {
    const path = await newFile('n\n1\n')
    await expect(readChunk(csv({ path }), cursor, 1)).rejects.toThrow('is not one of a file')
  })

  it('leaves no file open, however a read ends', async () => {
    const { path, cursor } = await started()
    const bad = await newFile('{"n":1}\nno JSON\n')
    const open = async () => (await readdir('/proc/self/fd')).length
    const before = await open()
    for (let i = 0; i < 20; i++) {
      await readChunk(csv({ path }), cursor, 1)
      await expect(readChunk(csv({ path }), { ...(cursor as object), digest: '' }, 1)).rejects.toThrow(
        'is another one',
      )
      const next = (await readChunk(ndjson({ path: bad }), null, 9)).cursor
      await expect(readChunk(ndjson({ path: bad }), next, 9)).rejects.toThrow('not JSON')
    }
    expect(await open()).toBe(before)
  })
})
