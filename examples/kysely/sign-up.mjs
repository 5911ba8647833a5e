import { runnerOf } from './runner-of.mjs'

/** The user, the job and the event, in one transaction of Kysely's. Resolves to `welcome`, or `taken` and nothing is there. */
export async function signUp(db, hf, { login, address }) {
  try {
    await db.transaction().execute(async (trx) => {
      await trx.insertInto('users').values({ login, address }).execute()
      const tx = runnerOf(trx)
      await hf.enqueue('open-account', { login }, { tx })
      await hf.publish(tx, { type: 'user.signed-up', subject: login, data: { address } })
      // Who has an address comes last here, so that there is something to take back.
      await trx.insertInto('addresses').values({ address, login }).execute()
    })
    return 'welcome'
  } catch (error) {
    if (error.code !== '23505') throw error
    return 'taken'
  }
}
