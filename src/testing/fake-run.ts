import { deferred } from '../db/deferred.ts'
import { InvalidConfigError, NameInUseError, RolledBackError } from '../db/errors.ts'
import { type Json, throughJson } from '../db/json.ts'
import { messageOf } from '../db/message-of.ts'
import type { RunResult, RunSpec } from '../jobs/run-distributed.ts'
import { begin } from './fake-begin.ts'
import type { FakeContext, FakeRun } from './fake-context.ts'
import { abort, compensate, decideCommit } from './fake-ending.ts'
import type { FakeTransaction } from './fake-transactions.ts'

type Spec = RunSpec<unknown, unknown>

const defaultDeadlineMs = 10 * 60 * 1000

/**
 * Stage, effects, commit. A name that is committed answers with what was stored; one whose run has crashed goes on.
 * `beforeStaging` may throw; nothing is staged then.
 */
export async function runDistributed(
  fake: FakeContext,
  name: string,
  spec: Spec,
  beforeStaging?: () => Promise<void>,
): Promise<RunResult<unknown, unknown>> {
  const row = fake.transactions.last(name)
  register(fake, spec)
  if (row?.decision === 'commit') return resultOf(row, row.result)
  if (!row || row.decision === 'abort') {
    await beforeStaging?.()
    return runEffects(fake, await stageNew(fake, name, spec), spec)
  }
  if (!row.resumable) {
    throw new NameInUseError(
      `${name} was begun by beginDistributed and is ${row.status}; finish it, or use another name`,
    )
  }
  if (row.owner !== null)
    throw new NameInUseError(`${name} is being run by another process or call; wait until it has ended`)
  row.history.push('taken_over')
  return runEffects(fake, row, spec)
}

function register(fake: FakeContext, { operation, compensate: undo }: Spec): void {
  if (!undo) return
  if (operation === undefined) {
    throw new InvalidConfigError([
      'compensate needs `operation`: by that name another process finds the compensation after a crash (`operations` in the config)',
    ])
  }
  if (!fake.operations.has(operation)) fake.operations.set(operation, { compensate: undo })
}

async function stageNew(fake: FakeContext, name: string, spec: Spec): Promise<FakeTransaction> {
  const { stage, effects: _e, compensate: _c, signal: _s, timeoutMs, ...options } = spec
  const deadlineMs = options.deadlineMs ?? timeoutMs ?? defaultDeadlineMs
  await begin(fake, name, stage, { ...options, deadlineMs }, 'run')
  return fake.transactions.get(name)
}

async function runEffects(
  fake: FakeContext,
  row: FakeTransaction,
  { effects, signal: given }: Spec,
): Promise<RunResult<unknown, unknown>> {
  const { name, attempt, staged } = row
  const died = deferred<never>()
  died.promise.catch(() => undefined)
  const run: FakeRun = { limit: new AbortController(), die: (error) => died.reject(error) }
  const crashed = () => fake.runs.get(attempt) !== run
  fake.runs.set(attempt, run)
  row.owner = fake.owner
  try {
    const { signal: limit } = run.limit
    const signal = given ? AbortSignal.any([limit, given]) : limit
    const context = { name, attempt, staged, idempotencyKey: attempt, signal }
    const returned = await Promise.race([effects?.(context), died.promise])
    if (crashed()) await died.promise
    const result = throughJson(returned ?? null, 'what the effects returned')
    decideCommit(row, { result })
    if (row.decision !== 'commit')
      throw new RolledBackError(`${name} was rolled back while its effects ran: ${row.reason}`)
    return resultOf(row, result)
  } catch (error) {
    if (crashed()) await died.promise
    await abort(fake, row, 'failed', messageOf(error))
    throw error
  } finally {
    if (!crashed()) {
      fake.runs.delete(attempt)
      row.owner = null
      await compensate(fake, row)
    }
  }
}

function resultOf({ name, attempt, staged }: FakeTransaction, result: Json): RunResult<Json, Json> {
  return { state: 'committed', name, attempt, staged, result }
}

/** Ends the run that is at its effects as the death of its process would: what only that process knew is forgotten. */
export function crash(fake: FakeContext, name: string): void {
  const row = fake.transactions.get(name)
  const run = fake.runs.get(row.attempt)
  if (!run) throw new InvalidConfigError([`no run of ${name} is at its effects`])
  fake.runs.delete(row.attempt)
  row.owner = null
  fake.operations.clear()
  for (const [operation, declared] of fake.declared) fake.operations.set(operation, declared)
  const job = fake.jobs.findByTransaction(name)
  if (job) job.revoke = undefined
  run.die(new Error(`the run of ${name} has crashed, as the test wanted`))
}
