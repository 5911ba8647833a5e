import { writeFile } from 'node:fs/promises'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { InvalidConfigError, InvalidPayloadError } from '../../../src/db/errors.ts'
import { ndjson } from '../../../src/jobs/sources/ndjson.ts'
import { newFile, numbers, readAll, readChunk } from './read-file.ts'

const row = fc.oneof(
  fc.dictionary(fc.string({ unit: 'binary' }), fc.jsonValue(), { maxKeys: 3 }),
  fc.array(fc.jsonValue(), { maxLength: 3 }),
)

describe('ndjson', () => {
  it('reads every record once, whatever stands in it and wherever it resumes', async () => {
    const path = await newFile('')
    const file = fc.record({
      rows: fc.array(row, { maxLength: 30 }),
      newline: fc.constantFrom('\n', '\r\n', '\n\n', ' \r\n\t\n'),
      bom: fc.constantFrom('', '\uFEFF'),
      lastNewline: fc.boolean(),
      sizes: fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 1, maxLength: 4 }),
    })
    await fc.assert(
      fc.asyncProperty(file, async (f) => {
        const text = f.rows.map((r) => JSON.stringify(r)).join(f.newline)
        await writeFile(path, f.bom + text + (f.lastNewline ? f.newline : ''))
        const expected = f.rows.map((r) => JSON.parse(JSON.stringify(r)) as object)
        const { rows, keys, cursors } = await readAll(() => ndjson({ path }), f.sizes)
        expect(rows).toEqual(expected)
        expect(keys).toEqual(numbers(1, expected.length))
        for (const cursor of cursors) {
          const record = cursor === null ? 0 : (cursor as { record: number }).record
          const rest = await readAll(() => ndjson({ path }), [3], cursor)
          expect(rest.rows).toEqual(expected.slice(record))
          expect(rest.keys).toEqual(numbers(record + 1, expected.length))
        }
      }),
      { numRuns: 150 },
    )
  })

  it('reads lines longer than the blocks it reads, and characters that straddle them', async () => {
    const rows = numbers(0, 40).map((n) => ({ n, t: `${'x'.repeat(n)}${'漢🦭'.repeat(n * 997)}` }))
    const path = await newFile(rows.map((r) => `${JSON.stringify(r)}\n`).join(''))
    expect((await readAll(() => ndjson({ path }), [4, 1])).rows).toEqual(rows)
  })

  it.each([
    ['no JSON', '{"n":3', 'is not JSON'],
    ['not UTF-8', Buffer.from('{"n":"\xfc"}', 'latin1'), 'is not UTF-8'],
    ['no object', '17', 'is JSON but neither an object nor an array: 17'],
    ['null', 'null', 'is JSON but neither an object nor an array: null'],
    ['too long', `{"n":"${'x'.repeat(100)}"}`, 'is longer than 100 bytes'],
    ['too long for any file', 'x'.repeat(300_000), 'is longer than 100 bytes'],
  ])('reads up to a line that is %s, and names it', async (_what, line, message) => {
    const path = await newFile(
      Buffer.concat([Buffer.from('\n{"n":1}\n\n{"n":2}\n\n'), Buffer.from(line), Buffer.from('\n{"n":4}\n')]),
    )
    for (const limit of [1, 2, 3, 1000]) {
      const source = ndjson({ path, maxRecordBytes: 100 })
      let chunk = await readChunk(source, null, limit)
      if (limit === 1) chunk = await readChunk(source, chunk.cursor, 1)
      expect(chunk).toMatchObject({ keys: limit === 1 ? [2] : [1, 2], cursor: { record: 2 }, last: false })
      const failed = readChunk(source, chunk.cursor, limit)
      await expect(failed).rejects.toThrow(InvalidPayloadError)
      await expect(failed).rejects.toThrow(`${path}, line 6: record 3 ${message}`)
    }
  })

  it('goes on after a line that was corrected where it stands', async () => {
    const path = await newFile('{"n":1}\n{"n":twentytwo}\n{"n":3}\n')
    const { cursor } = await readChunk(ndjson({ path }), null, 10)
    await writeFile(path, '{"n":1}\n{"n":2}\n{"n":3}\n\n\n\n\n\n\n\n\n\n\n')
    expect((await readAll(() => ndjson({ path }), [10], cursor)).rows).toEqual([{ n: 2 }, { n: 3 }])
  })

  it('refuses options that are wrong', () => {
    expect(() => ndjson({ path: '', maxRecordBytes: 1.5 })).toThrow(InvalidConfigError)
  })
})
