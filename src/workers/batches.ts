import { randomUUID } from 'node:crypto'
import { type BatchFailure, listFailures } from '../db/batch-failures.ts'
import {
  type BatchFilter,
  type BatchJob,
  type BatchStatus,
  findBatchJob,
  listBatchJobs,
} from '../db/batch-jobs.ts'
import { type BatchProgress, readBatchProgress } from '../db/batch-positions.ts'
import { type BatchRunRecord, listBatchRuns } from '../db/batch-runs.ts'
import { InvalidConfigError } from '../db/errors.ts'
import {
  cancelBatch,
  type Force,
  pauseBatch,
  resumeBatch,
  retryBatchFailures,
} from '../jobs/batch-control.ts'
import type { BatchDefinition } from '../jobs/batch-definition.ts'
import { type DryRun, type DryRunOptions, dryRunBatch } from '../jobs/dry-run-batch.ts'
import {
  type EnqueuedBatch,
  enqueueBatchJob,
  ensureBatchCompleted,
  type WaitOptions,
  waitForBatch,
} from '../jobs/enqueue-batch.ts'
import { type Verification, verifyBatch } from '../jobs/verify-batch.ts'
import type { Context } from './context.ts'
import { QueueHint } from './queue-hint.ts'
import { batchQueueJob } from './worker.ts'

/** What the library and the command line do with batch jobs. The row is the job; the queue only says that it is there. */
export class Batches {
  readonly #ctx: Context
  readonly #hint: QueueHint

  constructor(ctx: Context) {
    this.#ctx = ctx
    this.#hint = new QueueHint(ctx.queues, ctx.log)
  }

  async enqueue(batch: string | { readonly name: string }, params?: unknown): Promise<EnqueuedBatch> {
    const enqueued = await enqueueBatchJob(this.#ctx, this.#definition(batch), params, randomUUID())
    await this.#hint.tell('batch', batchQueueJob(enqueued.jobId))
    return enqueued
  }

  async dryRun(
    batch: string | { readonly name: string },
    params?: unknown,
    options?: DryRunOptions,
  ): Promise<DryRun> {
    return dryRunBatch(this.#ctx, this.#definition(batch), params, options)
  }

  get(jobId: string): Promise<BatchJob | undefined> {
    return findBatchJob(this.#ctx.databases.primary.sql, jobId)
  }

  list(filter?: BatchFilter): Promise<BatchJob[]> {
    return listBatchJobs(this.#ctx.databases.primary.sql, filter)
  }

  progress(jobId: string): Promise<BatchProgress> {
    return readBatchProgress(this.#ctx.databases.primary.sql, jobId)
  }

  failures(jobId: string, limit?: number): Promise<BatchFailure[]> {
    return listFailures(this.#ctx.databases.primary.sql, jobId, limit)
  }

  runs(jobId: string, limit?: number): Promise<BatchRunRecord[]> {
    return listBatchRuns(this.#ctx.databases.primary.sql, jobId, limit)
  }

  wait(job: string | { jobId: string }, options?: WaitOptions): Promise<BatchJob> {
    return waitForBatch(this.#ctx, typeof job === 'string' ? job : job.jobId, options)
  }

  pause(jobId: string, options?: Force): Promise<BatchStatus> {
    return pauseBatch(this.#ctx, jobId, options)
  }

  async resume(jobId: string): Promise<BatchStatus> {
    const status = await resumeBatch(this.#ctx, jobId)
    await this.#hint.tell('batch', batchQueueJob(jobId))
    return status
  }

  cancel(jobId: string, options?: Force): Promise<BatchStatus> {
    return cancelBatch(this.#ctx, jobId, options)
  }

  async retryFailures(jobId: string): Promise<number> {
    const asked = await retryBatchFailures(this.#ctx, jobId)
    if (asked > 0) await this.#hint.tell('batch', batchQueueJob(jobId))
    return asked
  }

  verify(jobId: string, signal?: AbortSignal): Promise<Verification> {
    return verifyBatch(this.#ctx, this.#ctx.config.batches, jobId, signal)
  }

  async ensureCompleted(batch: string | { readonly name: string }, params?: unknown): Promise<BatchJob> {
    return ensureBatchCompleted(this.#ctx, this.#definition(batch), params)
  }

  #definition(batch: string | { readonly name: string }): BatchDefinition {
    const name = typeof batch === 'string' ? batch : batch.name
    const definition = this.#ctx.config.batches.get(name)
    if (definition) return definition
    const known = [...this.#ctx.config.batches.keys()].join(', ') || 'none'
    throw new InvalidConfigError([`no batch named ${JSON.stringify(name)} is configured; known: ${known}`])
  }
}
