import { defineBatch, keyset } from 'holdfast'

/** Amounts as text become whole cents. Each chunk commits together with its position: the checkpoint cannot be wrong. */
export const amountToCents = defineBatch({
  name: 'amount-to-cents',
  source: keyset({ table: 'invoices', key: ['id'] }),
  chunkSize: 100,
  // Rows that fail by themselves are set aside, with their errors; with the eleventh the job fails.
  skipLimit: 10,
  async process(rows, { tx }) {
    // `conversions` counts, so that a row that was converted twice could be told.
    await tx`update invoices set cents = round(amount::numeric * 100), conversions = conversions + 1
      where id = any (${rows.map((row) => row.id)}::int[])`
  },
})
