import type { Bench } from './measure.ts'
import { outboxLatency } from './outbox-latency.ts'
import { outboxManyRows } from './outbox-many-rows.ts'
import { outboxMemory } from './outbox-memory.ts'
import { outboxOldTransaction } from './outbox-old-transaction.ts'
import { outboxPeers } from './outbox-peers.ts'
import { outboxThroughput } from './outbox-throughput.ts'

/** In this order; the one that leaves the disk most to do comes last. */
export const outbox: Readonly<Record<string, Bench>> = {
  'outbox-throughput': outboxThroughput,
  'outbox-old-transaction': outboxOldTransaction,
  'outbox-latency': outboxLatency,
  'outbox-memory': outboxMemory,
  'outbox-peers': outboxPeers,
  'outbox-many-rows': outboxManyRows,
}
