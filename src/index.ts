export type { BatchFailure } from './db/batch-failures.ts'
export type { BatchJob, BatchStatus } from './db/batch-jobs.ts'
export type { BatchProgress, RangeProgress } from './db/batch-positions.ts'
export type { BatchRunRecord } from './db/batch-runs.ts'
export type { CloudEvent } from './db/cloud-event.ts'
export type { DistributedTransaction, ListFilter, Status } from './db/distributed-transactions.ts'
export * from './db/errors.ts'
export type { EventRunner } from './db/event-runner.ts'
export type { Job, JobError, JobFilter, JobStatus } from './db/jobs.ts'
export type { Json } from './db/json.ts'
export type { NewEvent } from './db/outbox.ts'
export type { OutboxEvent } from './db/outbox-event.ts'
export { transactionName } from './db/transaction-name.ts'
export type { Tx } from './db/tx.ts'
export type { Force } from './jobs/batch-control.ts'
export {
  type AdaptiveSize,
  type BatchDefinition,
  type ChunkContext,
  defineBatch,
  type HookContext,
} from './jobs/batch-definition.ts'
export type { Begun } from './jobs/begin.ts'
export type { BeginOptions } from './jobs/begin-options.ts'
export type { DryChunk, DryRun, DryRunOptions } from './jobs/dry-run-batch.ts'
export type { EnqueuedBatch } from './jobs/enqueue-batch.ts'
export type { Enqueued, EnqueueOptions } from './jobs/enqueue-job.ts'
export type { Progress } from './jobs/finish.ts'
export type { IdempotentOptions, IdempotentResult, IdempotentWork } from './jobs/idempotent.ts'
export {
  type AsJson,
  type DefinedJob,
  defineJob,
  type JobCompensationContext,
  type JobDefinition,
  type JobEffectsContext,
  type JobSpec,
  type RetryOptions,
  type StageContext,
} from './jobs/job-definition.ts'
export { type KeysetColumn, type KeysetOptions, keyset } from './jobs/keyset.ts'
export type { CompensationContext, Operation } from './jobs/operations.ts'
export type { Evidence, Outcome, ParticipantEvidence } from './jobs/outcome.ts'
export { RetryLater } from './jobs/retry.ts'
export type { EffectsContext, RunResult, RunSpec } from './jobs/run-distributed.ts'
export type { Schedule } from './jobs/schedule-definition.ts'
export type { MissedPolicy } from './jobs/schedules.ts'
export { type Delivery, defineSink, type SinkSpec } from './jobs/sinks/define-sink.ts'
export type {
  OpenSink,
  Page,
  Published,
  Rejection,
  Sink,
  SinkContext,
  SinkPolicy,
} from './jobs/sinks/sink.ts'
export type { Chunk, Source, Split } from './jobs/source.ts'
export { type CsvOptions, csv } from './jobs/sources/csv.ts'
export type { FileOptions } from './jobs/sources/file-source.ts'
export { ndjson } from './jobs/sources/ndjson.ts'
export type { Work, WorkByParticipant } from './jobs/stage-work.ts'
export type { ThrottleLimits } from './jobs/throttle.ts'
export type { ChangedChunk, Verification } from './jobs/verify-batch.ts'
export type { VoteOptions, VoteResult } from './jobs/vote.ts'
export { type Connections, defineConfig, type HoldfastConfig, type Timing } from './workers/config.ts'
export { createHoldfast, type Holdfast } from './workers/holdfast.ts'
export { createProducer, type Producer, type ProducerOptions } from './workers/producer.ts'
export type { ScheduleView } from './workers/schedules.ts'
