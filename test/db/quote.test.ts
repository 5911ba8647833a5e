import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { quoteLiteral } from '../../src/db/quote.ts'
import { newDatabases, openContext } from '../support/database.ts'

describe('a text that is quoted as a literal', () => {
  it.each(['on', 'off'])('is itself again, with standard_conforming_strings %s', async (setting) => {
    const { databases } = await openContext(await newDatabases())
    const characters = fc.constantFrom("'", '\\', '"', '$', 'E', '\n', '%', '--', ';', 'é', '🙂', '::text')
    const texts = fc.sample(fc.array(characters, { maxLength: 8 }), { numRuns: 200, seed: 7 })
    await databases.primary.transaction(async (tx) => {
      await tx.unsafe(
        `set local standard_conforming_strings = ${setting}; set local escape_string_warning = off`,
      )
      for (const parts of texts) {
        const text = parts.join('')
        const [row] = await tx.unsafe<{ text: string }[]>(`select ${quoteLiteral(text)}::text as text`)
        expect(row?.text).toBe(text)
      }
    })
  })
})
