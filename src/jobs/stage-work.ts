import { InvalidConfigError } from '../db/errors.ts'
import { sealText } from '../db/markers.ts'
import { ensureChecked } from '../db/migrate.ts'
import { StagedTransaction } from '../db/staged-transaction.ts'
import { reached } from '../db/steps.ts'
import { formatGid } from '../db/transaction-name.ts'
import type { Tx } from '../db/tx.ts'
import { within } from '../db/within.ts'
import type { JobContext } from './context.ts'
import { traced } from './tracing.ts'

/** The user's work, on `primary` or on several participants by name. */
export type Work<T> = (tx: Tx) => Promise<T> | T
export type WorkByParticipant = Readonly<Record<string, Work<unknown>>>

/** How long a database that was away at the start is waited for before anything is staged on it. */
const reachMs = 15_000

/** The work by database. `known` throws where the config declares no such database. */
export function checkWork(
  known: (participant: string) => unknown,
  work: Work<unknown> | WorkByParticipant,
): WorkByParticipant {
  const byParticipant = typeof work === 'function' ? { primary: work } : work
  const entries = Object.entries(byParticipant)
  if (entries.length === 0)
    throw new InvalidConfigError(['give the work as a function, or one function per database'])
  for (const [participant, fn] of entries) {
    known(participant)
    if (typeof fn !== 'function')
      throw new InvalidConfigError([`the work for ${participant} is not a function`])
  }
  return byParticipant
}

/** Runs all work, then prepares all, each side in parallel. When it throws, nothing is being staged any more. */
export async function stageAll(
  ctx: JobContext,
  name: string,
  attempt: string,
  work: WorkByParticipant,
): Promise<Record<string, unknown>> {
  const open: StagedTransaction[] = []
  try {
    // One order for everybody: two callers that each hold one pool's last connection would wait for ever.
    for (const participant of Object.keys(work).toSorted()) {
      const checked = ensureChecked(ctx.databases.get(participant), ctx.installation)
      await within(reachMs, `reaching ${participant}`, checked)
      const gid = formatGid({
        installation: ctx.installation,
        policy: 'presumed-abort',
        participant,
        attempt,
        name,
      })
      open.push(await StagedTransaction.open(ctx.databases.get(participant), gid, attempt))
    }
    const results = await allOrFirstError(
      open.map(async (staged) => {
        const result = await staged.run(work[staged.participant.name] as Work<unknown>)
        return [staged.participant.name, result] as const
      }),
    )
    await reached('begin.worked')
    const prepared = open.splice(0)
    await allOrFirstError(
      prepared.map(async (staged) => {
        const participant = staged.participant.name
        await traced('holdfast.prepare', { name, attempt, participant }, () =>
          staged.prepare(sealText(participant)),
        )
        await reached('begin.prepared-one')
      }),
    )
    return Object.fromEntries(results)
  } finally {
    await Promise.all(open.map((staged) => staged.abandon()))
  }
}

/** Waits for all, so that nothing goes on behind the caller's back, then throws the first error if there was one. */
async function allOrFirstError<T>(promises: readonly Promise<T>[]): Promise<T[]> {
  await Promise.allSettled(promises)
  return Promise.all(promises)
}
