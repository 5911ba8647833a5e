import { CompensationOutstandingError, InvalidConfigError } from '../db/errors.ts'
import { type Job, jobOfTransaction } from '../db/jobs.ts'
import { parseInput } from './enqueue-job.ts'
import type { JobDefinition } from './job-definition.ts'
import type { KnownOperation } from './operations.ts'
import { stagedTogether } from './stage-together.ts'

/** What the transactions of a job are found again by. */
export function operationOfJob(name: string): string {
  return `job:${name}`
}

/** Where the jobs of a definition are kept. */
export type JobRows = {
  find(jobId: string): Promise<Job | undefined>
  /** whether somebody goes on with the transaction of this name before long */
  isResumed(transaction: string): Promise<boolean>
}

/** How a job's transaction that nobody runs goes on, and what compensates it. */
export function jobOperation(definition: JobDefinition, rows: JobRows): KnownOperation {
  const resumes = (name: string) => rows.isResumed(name)
  if (!definition.compensate) return { resumes }
  return {
    resumes,
    async compensate({ name, attempt, staged, reason, idempotencyKey, signal, log }) {
      const jobId = jobOfTransaction(name)
      const job = await rows.find(jobId)
      if (!job) throw new InvalidConfigError([`job ${jobId} is gone, and with it the input to compensate by`])
      await definition.compensate?.({
        input: await parseInput(definition, job.input),
        staged: stagedTogether(staged),
        jobId,
        idempotencyKey,
        effectsKey: attempt,
        reason,
        signal,
        log,
      })
    },
  }
}

/** Why the next attempt of a job does not begin. */
export function compensationOutstanding(
  name: string,
  left: { attempt: string; compensation: string },
): CompensationOutstandingError {
  const givenUp = left.compensation === 'failed'
  return new CompensationOutstandingError(
    `${name} is not staged again: what attempt ${left.attempt} did outside is not undone${givenUp ? `, and its compensation failed for good; \`holdfast tx show ${name}\` says what to do, then retry the job` : ' yet'}`,
    { givenUp },
  )
}
