import type { Connection } from './connection.ts'
import type { Participant } from './databases.ts'
import { FencedError, NotPreparedError, UnknownOutcomeError } from './errors.ts'
import { committedForwardAttempt, sealForwardText } from './markers.ts'
import {
  beginText,
  checkPrepared,
  commitPrepared,
  commitPreparedTexts,
  explainPrepareFailure,
  listPrepared,
  prepareText,
} from './prepared.ts'
import { confirmReplicated } from './replication.ts'
import { isConnectionLoss, SQLSTATE, sqlstateOf } from './sqlstate.ts'
import type { Step } from './steps.ts'
import { isWatched, reached } from './steps.ts'
import { formatGid, parseGid } from './transaction-name.ts'
import type { Tx } from './tx.ts'

/**
 * One participant's part of one attempt, from BEGIN to PREPARE, on a connection of its own. BEGIN is sent without
 * waiting, so that it shares a flush with the first query of the work.
 */
export class StagedTransaction {
  readonly participant: Participant
  readonly gid: string
  readonly tx: Tx
  readonly #connection: Connection
  readonly #end: () => void
  readonly #sent: Promise<void>[] = []

  private constructor(participant: Participant, connection: Connection, gid: string, begin: string) {
    this.participant = participant
    this.gid = gid
    this.#connection = connection
    const tx = connection.tx()
    this.tx = tx
    this.#end = () => tx.end()
    this.send(connection.send(begin))
  }

  static async open(participant: Participant, gid: string, attempt: string): Promise<StagedTransaction> {
    const connection = await participant.staging.acquire()
    return new StagedTransaction(participant, connection, gid, beginText(attempt))
  }

  /** Runs work and waits for it; rejects at once when the connection ends under it. */
  async run<T>(work: (tx: Tx) => Promise<T> | T): Promise<T> {
    return this.#connection.whileAlive(Promise.resolve(work(this.tx)))
  }

  /** Sends a query of the work without waiting for it. When it fails, the PREPARE fails with its error. */
  send(query: PromiseLike<unknown>): void {
    const sent = Promise.resolve(query.then(() => undefined))
    sent.catch(() => undefined)
    this.#sent.push(sent)
  }

  /** Marker and PREPARE. When it returns, the work is durable, invisible, locked and named. */
  async prepare(seal: string): Promise<void> {
    await this.#close()
    try {
      checkPrepared(await this.#connection.send(prepareText(this.gid, seal, this.participant.ownerRole)))
      await Promise.all(this.#sent)
    } catch (error) {
      await this.abandon()
      const cause = await this.#firstFailure(error)
      throw isConnectionLoss(cause) ? cause : explainPrepareFailure(this.participant.name, cause)
    }
    await this.participant.staging.release(this.#connection, true)
  }

  /**
   * Marker, PREPARE and COMMIT PREPARED in one flush, for work that nothing else has to agree with. While `prepared`
   * is watched they go one after the other, so that a kill can land between them.
   */
  async prepareAndCommit(seal: string, prepared: Step): Promise<void> {
    await this.#close()
    const { ownerRole } = this.participant
    const prepareMessage = prepareText(this.gid, seal, ownerRole)
    const commitMessages = commitPreparedTexts(this.gid, ownerRole)
    try {
      if (isWatched(prepared)) {
        checkPrepared(await this.#connection.send(prepareMessage))
        await reached(prepared)
        for (const text of commitMessages.texts) await this.#connection.send(text)
      } else {
        const [prepare, ...commits] = await this.#connection.flush([prepareMessage, ...commitMessages.texts])
        // After a failed PREPARE the COMMIT PREPARED fails as well: the gid is this attempt's own.
        await Promise.all(this.#sent)
        if (prepare?.status === 'rejected') throw prepare.reason
        checkPrepared(prepare?.value ?? [])
        const commit = commits[commitMessages.answer]
        if (commit?.status === 'rejected') throw commit.reason
      }
    } catch (error) {
      await this.abandon()
      throw await this.#firstFailure(error)
    }
    await this.participant.staging.release(this.#connection, true)
  }

  /** Rolls back what is not prepared and gives the connection back clean. */
  async abandon(): Promise<void> {
    this.#end()
    const clean = await this.#connection.send('ROLLBACK; RESET SESSION AUTHORIZATION').then(
      () => true,
      () => false,
    )
    await this.participant.staging.release(this.#connection, clean)
  }

  /** Ends the handle once the queries that were sent without waiting are on their way (postgres.js: one microtask). */
  async #close(): Promise<void> {
    await Promise.resolve()
    this.#end()
  }

  /** A query that was not waited for fails before the PREPARE does, and says more. */
  async #firstFailure(error: unknown): Promise<unknown> {
    for (const sent of await Promise.allSettled(this.#sent))
      if (sent.status === 'rejected') return sent.reason
    return error
  }
}

export type ForwardWork = {
  installation: string
  attempt: string
  /** unique for ever: the name can commit once */
  name: string
}

/**
 * Effect-free work on `primary`, committed forward: nothing but the database has to agree, so PREPARE and COMMIT
 * PREPARED leave together, and whoever finds the gid in doubt commits it.
 *
 * Throws FencedError when the name was committed already or is in doubt under another attempt, NotPreparedError when
 * the work cannot be prepared, the work's own error when it throws, and UnknownOutcomeError when the connection was
 * lost and the database cannot tell (yet).
 */
export async function stageForward<T>(
  participant: Participant,
  spec: ForwardWork,
  work: (tx: Tx, send: (query: PromiseLike<unknown>) => void) => Promise<T> | T,
): Promise<T> {
  const { installation, attempt, name } = spec
  const gid = formatGid({
    installation,
    policy: 'commit-forward',
    participant: participant.name,
    attempt,
    name,
  })
  await reached('chunk.staging')
  const staged = await StagedTransaction.open(participant, gid, attempt)
  const { idleTimeoutMs } = participant.limits
  const started = performance.now()
  let result: T
  try {
    result = await staged.run((tx) => work(tx, (query) => staged.send(query)))
  } catch (error) {
    await staged.abandon()
    if (!isConnectionLoss(error) || performance.now() - started < idleTimeoutMs) throw error
    // The server's reason does not reach an idle client; a loss this late is most likely its idle limit.
    throw new NotPreparedError(
      `the connection was lost after ${name} had worked for more than ${idleTimeoutMs} ms: work must not leave its transaction idle that long. Do slow things before or after it`,
    )
  }
  try {
    await staged.prepareAndCommit(sealForwardText(participant.name, name), 'chunk.prepared')
  } catch (error) {
    await settleForward(participant, spec, gid, error)
  }
  await reached('chunk.committed')
  return result
}

/**
 * After an error in the flush: did it commit? Returns if it did, otherwise throws.
 *
 * 1. The answer was lost and the gid is listed: it was prepared, so it goes forward.
 * 2. The gid is gone and the marker stands: it committed (by us, or by a recovery that found it first).
 * 3. Neither: not prepared, or the PREPARE is still on its way in a backend that has not noticed the lost client.
 *    The name's unique marker keeps a second staging from doubling it, so the caller may try the name again.
 */
async function settleForward(
  participant: Participant,
  spec: ForwardWork,
  gid: string,
  error: unknown,
): Promise<void> {
  const state = sqlstateOf(error)
  if (isConnectionLoss(error) || state === SQLSTATE.undefinedObject) {
    const listed = (await listPrepared(participant.sql, spec.installation)).some((p) => p.gid === gid)
    if (listed) await commitPrepared(participant, gid)
  } else if (state !== SQLSTATE.uniqueViolation) throw explainPrepareFailure(participant.name, error)
  const committed = await committedForwardAttempt(participant, spec.name)
  if (committed === spec.attempt) return confirmReplicated(participant)
  if (committed !== undefined) {
    throw new FencedError(`${spec.name} was committed already by another attempt`, { cause: error })
  }
  if (state === SQLSTATE.uniqueViolation) throw explainPrepareFailure(participant.name, error)
  throw new UnknownOutcomeError(
    `whether ${spec.name} was prepared is not known yet; it can be staged again`,
    {
      cause: error,
    },
  )
}

/** Commits what is in doubt under a commit-forward name (or all names that start so). Returns the attempts. */
export async function resolveForward(
  participant: Participant,
  installation: string,
  matches: (nameInGid: string) => boolean,
): Promise<{ name: string; attempt: string }[]> {
  const resolved: { name: string; attempt: string }[] = []
  for (const { gid } of await listPrepared(participant.sql, installation)) {
    const parts = parseGid(gid)
    if (!parts || parts.policy !== 'commit-forward' || !matches(parts.name)) continue
    if ((await commitPrepared(participant, gid)) === 'done') {
      resolved.push({ name: parts.name, attempt: parts.attempt })
    }
  }
  return resolved
}
