export type { BatchJob, BatchStatus } from './db/batch-jobs.ts'
export type { CloudEvent } from './db/cloud-event.ts'
export type { DistributedTransaction, ListFilter, Status } from './db/distributed-transactions.ts'
export * from './db/errors.ts'
export type { EventRunner } from './db/event-runner.ts'
export type { Json } from './db/json.ts'
export type { NewEvent } from './db/outbox.ts'
export type { OutboxEvent } from './db/outbox-event.ts'
export { transactionName } from './db/transaction-name.ts'
export type { Tx } from './db/tx.ts'
export { type BatchDefinition, type ChunkContext, defineBatch } from './jobs/batch-definition.ts'
export type { Begun } from './jobs/begin.ts'
export type { BeginOptions } from './jobs/begin-options.ts'
export type { Progress } from './jobs/finish.ts'
export { type Chunk, type KeysetOptions, keyset, type Source } from './jobs/keyset.ts'
export type { CompensationContext, Operation } from './jobs/operations.ts'
export type { Evidence, Outcome, ParticipantEvidence } from './jobs/outcome.ts'
export type { EffectsContext, RunResult, RunSpec } from './jobs/run-distributed.ts'
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
export type { Work, WorkByParticipant } from './jobs/stage-work.ts'
export type { VoteOptions, VoteResult } from './jobs/vote.ts'
export { defineConfig, type HoldfastConfig, type Timing } from './workers/config.ts'
export { createHoldfast, type Holdfast } from './workers/holdfast.ts'
