import { defineJob } from 'holdfast'
import { z } from 'zod'

/** Enqueued by SQL, which does not know this schema: an input that does not fit fails the job at its first run. */
export const printLabel = defineJob({
  name: 'print-label',
  input: z.object({ id: z.string() }),
  async stage({ tx, input }) {
    await tx`insert into labels ("order") values (${input.id})`
  },
})
