import { writeFile } from 'node:fs/promises'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { InvalidConfigError, InvalidPayloadError } from '../../../src/db/errors.ts'
import { type CsvOptions, csv } from '../../../src/jobs/sources/csv.ts'
import { newFile, numbers, readAll, readChunk } from './read-file.ts'

const value = fc
  .array(
    fc.constantFrom('a', ' ', '"', '""', ',', ';', '\n', '\r\n', '\r', 'ü', '漢', '🦭', '\uFEFF', '\uFFFD'),
    {
      maxLength: 8,
    },
  )
  .map((parts) => parts.join(''))

const quote = (text: string, always: boolean) =>
  always || /[",;\r\n]|^\uFEFF|^$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text

const table = fc.record({
  rows: fc.array(fc.tuple(value, value, fc.boolean()), { maxLength: 30 }),
  newline: fc.constantFrom('\n', '\r\n'),
  delimiter: fc.constantFrom(',', ';'),
  bom: fc.constantFrom('', '\uFEFF'),
  blank: fc.boolean(),
  lastNewline: fc.boolean(),
  header: fc.constantFrom(['a', 'b'], ['schlüssel', 'zwei\n"Zeilen"']),
  named: fc.boolean(),
  sizes: fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 1, maxLength: 4 }),
})

describe('csv', () => {
  it('reads every record once, whatever stands in it and wherever it resumes', async () => {
    const path = await newFile('')
    await fc.assert(
      fc.asyncProperty(table, async (t) => {
        const lines = [
          ...(t.named ? [] : [t.header.map((name) => quote(name, false)).join(t.delimiter)]),
          ...t.rows.map(([a, b, always]) => `${quote(a, always)}${t.delimiter}${quote(b, always)}`),
        ]
        const text = lines.join(t.blank ? t.newline + t.newline : t.newline)
        await writeFile(path, t.bom + text + (t.lastNewline && text !== '' ? t.newline : ''))
        const source = () => csv({ path, delimiter: t.delimiter, ...(t.named ? { columns: t.header } : {}) })
        const expected = t.rows.map(([a, b]) => ({ [t.header[0]]: a, [t.header[1]]: b }))
        const { rows, keys, cursors } = await readAll(source, t.sizes)
        expect(rows).toEqual(expected)
        expect(keys).toEqual(numbers(1, expected.length))
        for (const cursor of cursors) {
          const record = cursor === null ? 0 : (cursor as { record: number }).record
          const rest = await readAll(source, [3], cursor)
          expect(rest.rows).toEqual(expected.slice(record))
          expect(rest.keys).toEqual(numbers(record + 1, expected.length))
        }
      }),
      { numRuns: 150 },
    )
  })

  it('cuts exactly where blocks of the file end inside of a character, a quote or a newline', async () => {
    for (const shift of numbers(0, 9)) {
      const records = numbers(1, 9000).map((n) => ({ n: String(n), t: '🦭"ü\r\n'.repeat(n % 4) }))
      const text = records.map(({ n, t }) => `${n},${quote(t, true)}\r\n`).join('')
      const path = await newFile(`n,t${' '.repeat(shift)}\r\n${text}`)
      const { rows } = await readAll(() => csv({ path }), [4000, 1, 997])
      expect(rows).toEqual(records.map(({ n, t }) => ({ n, [`t${' '.repeat(shift)}`]: t })))
    }
  })

  it('starts at the header and resumes at each byte where a record begins', async () => {
    const records = ['1,"x\ny"\r\n', '2,"ü"""\n', '"3",\r\n', '4,🦭']
    const path = await newFile(`\uFEFFid,text\n${records.join('')}`)
    let offset = Buffer.byteLength('\uFEFFid,text\n')
    let cursor = null
    for (const record of records) {
      const chunk = await readChunk(csv({ path }), cursor, 1)
      offset += Buffer.byteLength(record)
      expect(chunk.cursor).toMatchObject({ offset })
      expect(chunk.last).toBe(record === records.at(-1))
      cursor = chunk.cursor as never
    }
  })

  it.each([
    ['an empty file', '', {}],
    ['a byte order mark alone', '\uFEFF', {}],
    ['a header alone', 'a,b', {}],
    ['blank lines alone', '\n\r\n\n', {}],
    ['a byte order mark before data without header', '\uFEFF', { columns: ['a'] }],
  ])('ends at once on %s, and reads what is added later', async (what, content, options) => {
    const path = await newFile(content)
    const chunk = await readChunk(csv({ path, ...options }), null, 10)
    expect(chunk).toMatchObject({ rows: [], keys: [], last: true })
    await writeFile(path, `${content}${what.includes('header') ? '\n' : 'a,b\n'}1,2\n`)
    const columns = 'columns' in options ? { columns: ['a', 'b'] } : {}
    const { rows } = await readAll(() => csv({ path, ...columns }), [10], chunk.cursor)
    expect(rows).toEqual([{ a: '1', b: '2' }])
  })

  it.each([
    ['more values than columns', '1,2\n3,4\n5,6,7\n8,9\n', 'line 4: record 3 has 3 values for 2 columns'],
    ['fewer', '1,2\n3,4\n5\n8,9\n', 'line 4: record 3 has 1 values for 2 columns'],
    ['a stray quote', '1,2\n3,4\nx"y,6\n8,9\n', 'line 4: record 3 has a quote inside a value'],
    ['text after a quote', '1,2\n3,4\n"x"y,6\n8,9\n', 'line 4: record 3 has text after a closing quote'],
    ['an open quote', '1,2\n"3\n",4\n\n"x,6\n8,9\n', 'line 6: record 3 has a quote that is never closed'],
    ['Latin-1', Buffer.from('1,2\n3,4\n\xfc,6\n8,9\n', 'latin1'), 'line 4: record 3 is not UTF-8'],
    [
      'too long a record',
      `1,2\n3,4\n5,${'x'.repeat(200)}\n8,9\n`,
      'line 4: record 3 is longer than 100 bytes',
    ],
    ['too long a file', `1,2\n3,4\n"5,${'x\n'.repeat(90_000)}`, 'line 4: record 3 is longer than 100 bytes'],
  ])('reads up to %s and names its line', async (_what, content, message) => {
    const path = await newFile(Buffer.concat([Buffer.from('a,b\n'), Buffer.from(content)]))
    for (const limit of [1, 2, 3, 1000]) {
      const source = csv({ path, maxRecordBytes: 100 })
      let chunk = await readChunk(source, null, limit)
      if (limit === 1) chunk = await readChunk(source, chunk.cursor, 1)
      expect(chunk).toMatchObject({ cursor: { record: 2 }, last: false })
      const failed = readChunk(source, chunk.cursor, limit)
      await expect(failed).rejects.toThrow(InvalidPayloadError)
      await expect(failed).rejects.toThrow(`${path}, ${message}`)
    }
  })

  it('takes a record of exactly maxRecordBytes, also at the end of a block', async () => {
    // The parser waits for some bytes more before it lets a record out; here the block ends before they come.
    for (const left of numbers(0, 6)) {
      const header = `${'h'.repeat(65_536 - 65 * 1000 - left - 1)}\n`
      const path = await newFile(header + `${'x'.repeat(999)}\n`.repeat(130))
      const { rows } = await readAll(() => csv({ path, maxRecordBytes: 1000 }), [1000, 1])
      expect(rows).toHaveLength(130)
    }
    const path = await newFile(`h\n${'x'.repeat(999)}\n${'x'.repeat(1000)}\n`)
    const chunk = await readChunk(csv({ path, maxRecordBytes: 1000 }), null, 5)
    expect(chunk).toMatchObject({ cursor: { record: 1 }, last: false })
  })

  it.each([
    [
      'names a column twice',
      'a,b,a\n1,2,3\n',
      'line 1: the header is of no use: more than one column is named a',
    ],
    ['has a column without name', '\n\na,\n1,2\n', 'line 3: the header is of no use: a column has no name'],
    [
      'has a column __proto__',
      '__proto__\n1\n',
      'line 1: the header is of no use: no column can be named __proto__',
    ],
    ['is not UTF-8', Buffer.from('\xfc\n1\n', 'latin1'), 'line 1: the header is not UTF-8'],
    ['never ends', `"a${'x'.repeat(2000)}`, 'line 1: the header is longer than'],
  ])('refuses a header that %s', async (_what, content, message) => {
    const path = await newFile(content)
    await expect(readChunk(csv({ path, maxRecordBytes: 1000 }), null, 5)).rejects.toThrow(message)
  })

  it('refuses options that are wrong, all of them at once', () => {
    const wrong = { path: '', delimiter: '"', columns: ['a', 'a', ''], maxRecordBytes: 0 } as CsvOptions
    expect(() => csv(wrong)).toThrow(InvalidConfigError)
    try {
      csv(wrong)
    } catch (error) {
      expect((error as InvalidConfigError).problems).toHaveLength(5)
    }
  })
})
