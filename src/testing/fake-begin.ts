import { randomBytes, randomUUID } from 'node:crypto'
import { FencedError, InvalidNameError, RolledBackError } from '../db/errors.ts'
import { throughJson } from '../db/json.ts'
import { messageOf } from '../db/message-of.ts'
import { explainPrepareFailure } from '../db/prepared.ts'
import { checkTransactionName, newAttempt } from '../db/transaction-name.ts'
import type { Begun, Holding } from '../jobs/begin.ts'
import type { BeginOptions } from '../jobs/begin-options.ts'
import { checkWork, type Work, type WorkByParticipant } from '../jobs/stage-work.ts'
import { checkOptions, checkParticipant } from './fake-checks.ts'
import type { FakeContext } from './fake-context.ts'
import { abort } from './fake-ending.ts'
import { type FakeSession, openSession } from './fake-session.ts'
import { type FakeTransaction, move } from './fake-transactions.ts'
import { isAborted } from './fake-unit.ts'
import { decideByVotes } from './fake-votes.ts'

const dayMs = 24 * 60 * 60 * 1000

/** Runs the work of all participants; then they are prepared, all or none. */
export async function begin(
  fake: FakeContext,
  name: string,
  work: Work<unknown> | WorkByParticipant,
  options: BeginOptions = {},
  holding: Holding = 'nobody',
): Promise<Begun<unknown>> {
  checkTransactionName(name)
  if (name.startsWith('outbox:'))
    throw new InvalidNameError('names that start with outbox: are those of the relay')
  const byParticipant = checkWork((participant) => checkParticipant(fake, participant), work)
  checkOptions(fake, options)
  const row = fake.transactions.insert(newRow(fake, name, Object.keys(byParticipant), options, holding))
  const tokens = Object.fromEntries(
    row.awaits.map((service) => [service, randomBytes(32).toString('base64url')]),
  )
  fake.tokens.set(row.attempt, tokens)
  try {
    const results = await stageAll(fake, row, byParticipant)
    if (isAborted(row)) {
      throw new FencedError(
        `the attempt was rolled back while it was being staged (${row.reason}); begin it again`,
      )
    }
    const own = typeof work === 'function' ? results.primary : results
    const staged = throughJson(own ?? null, 'what the work returned')
    if (move(row, 'all-prepared', { staged, owner: holding === 'run' ? fake.owner : null }))
      await decideByVotes(fake, row)
    if (isAborted(row)) {
      throw new RolledBackError(
        `${name} was rolled back while it was being staged: ${row.reason}. It may be begun again`,
      )
    }
    return { name, attempt: row.attempt, staged, tokens: tokens }
  } catch (error) {
    await abort(fake, row, 'failed', messageOf(error))
    throw error
  }
}

/** All works run side by side, and all are waited for before the first error is passed on. */
async function stageAll(
  fake: FakeContext,
  row: FakeTransaction,
  work: WorkByParticipant,
): Promise<Record<string, unknown>> {
  const staging = Object.entries(work).map(async ([participant, run]) => {
    const session = openSession(fake, row, participant)
    try {
      return [participant, await run(session.tx), session] as const
    } finally {
      session.end()
    }
  })
  await Promise.allSettled(staging)
  const staged = await Promise.all(staging)
  for (const [, , session] of staged) prepare(session)
  return Object.fromEntries(staged)
}

/** A transaction that an error aborted has nothing to prepare. */
function prepare(session: FakeSession): void {
  const failure = session.failure()
  if (failure !== undefined) throw explainPrepareFailure(session.participant, failure)
}

function newRow(
  fake: FakeContext,
  name: string,
  participants: string[],
  options: BeginOptions,
  holding: Holding,
): FakeTransaction {
  const awaits = [...(options.awaits ?? [])]
  const now = new Date()
  const operation = options.operation ?? null
  return {
    attempt: newAttempt(fake.owner),
    name,
    operation,
    participants,
    status: 'started',
    decision: null,
    reason: null,
    abortCause: null,
    quarantine: null,
    owner: fake.owner,
    resumable: holding === 'run',
    awaits,
    votes: Object.fromEntries(awaits.map((service) => [service, { vote: null, reason: null }])),
    compensates: fake.operations.get(operation ?? '')?.compensate !== undefined,
    compensation: 'none',
    compensationError: undefined,
    deadline: new Date(now.getTime() + (options.deadlineMs ?? dayMs)),
    correlationId: options.correlationId ?? randomUUID(),
    traceparent: options.traceparent ?? null,
    metadata: options.metadata === undefined ? null : throughJson(options.metadata, 'metadata'),
    staged: null,
    result: null,
    createdAt: now,
    updatedAt: now,
    history: ['started'],
  }
}
