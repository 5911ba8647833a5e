import { deferred } from '../db/deferred.ts'
import type { Tx } from '../db/tx.ts'
import type { WorkByParticipant } from './stage-work.ts'

/** The database whose part of the work carries what `stage` returned. */
function homeOf(participants: readonly string[]): string | undefined {
  return participants.includes('primary') ? 'primary' : participants[0]
}

/**
 * One function as the work of several databases: it runs when all their transactions are open, and every part ends with
 * it. Only one part returns what it returned, so that it is stored once.
 */
export function stageTogether(
  participants: readonly string[],
  stage: (txs: Readonly<Record<string, Tx>>) => unknown,
): WorkByParticipant {
  const txs: Record<string, Tx> = {}
  const done = deferred<unknown>()
  const home = homeOf(participants)
  const part = async (participant: string, tx: Tx) => {
    txs[participant] = tx
    if (Object.keys(txs).length === participants.length) {
      Promise.resolve()
        .then(() => stage(txs))
        .then(
          (staged) => done.resolve(staged),
          (error: Error) => done.reject(error),
        )
    }
    const staged = await done.promise
    return participant === home ? staged : undefined
  }
  return Object.fromEntries(participants.map((name) => [name, (tx: Tx) => part(name, tx)]))
}

/** What `stage` returned, of what the parts did. */
export function stagedTogether(staged: unknown): unknown {
  if (typeof staged !== 'object' || staged === null) return null
  return Object.values(staged)[0] ?? null
}

export type TxsWithPrimary = Readonly<Record<'primary', Tx>> & Readonly<Record<string, Tx>>

/** The same where `primary` takes part, and what it returned as it is: what is staged has gone through JSON. */
export function together<T>(
  participants: readonly string[],
  act: (txs: TxsWithPrimary) => Promise<T>,
): { work: WorkByParticipant; result: () => T } {
  const returned: { value: T }[] = []
  const work = stageTogether(participants, async (txs) => {
    returned.push({ value: await act(txs as TxsWithPrimary) })
  })
  return {
    work,
    result() {
      const [one] = returned
      if (!one) throw new Error('the work has not ended')
      return one.value
    },
  }
}
