import { UnrecoverableError } from 'bullmq'
import { defineJob } from 'holdfast'
import { kysely } from 'holdfast/kysely'
import { z } from 'zod'

export const openAccount = defineJob({
  name: 'open-account',
  input: z.object({ login: z.string() }),
  async stage({ tx, input }) {
    // A Kysely over the staged transaction; it ends with it, and has nothing to close.
    const db = kysely(tx)
    const user = await db
      .updateTable('users')
      .set({ active: true })
      .where('login', '=', input.login)
      .returning('login')
      .executeTakeFirst()
    if (user === undefined) throw new UnrecoverableError(`there is no ${input.login}`)
    await db.insertInto('accounts').values({ login: user.login }).execute()
  },
})
