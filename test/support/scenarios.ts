import assert from 'node:assert/strict'
import { RejectedEventError } from '../../src/db/errors.ts'
import { appendEvents } from '../../src/db/outbox.ts'
import type { Step } from '../../src/db/steps.ts'
import { type BatchDefinition, defineBatch } from '../../src/jobs/batch-definition.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed, rollbackDistributed } from '../../src/jobs/coordinator.ts'
import { enqueueBatchJob } from '../../src/jobs/enqueue-batch.ts'
import { keyset } from '../../src/jobs/keyset.ts'
import { recover } from '../../src/jobs/recovery.ts'
import { type BatchOutcome, runBatch } from '../../src/jobs/run-batch.ts'
import { defineSink } from '../../src/jobs/sinks/define-sink.ts'
import { redisStream } from '../../src/jobs/sinks/redis-stream.ts'
import type { Sink } from '../../src/jobs/sinks/sink.ts'
import { sinkContext } from '../../src/jobs/sinks/sink-context.ts'
import { table } from '../../src/jobs/sinks/table.ts'
import { verifyBatch } from '../../src/jobs/verify-batch.ts'
import { chunkRanges, chunkTwoDatabases } from './batch-scenarios.ts'
import { completing, expiring } from './idempotency-scenarios.ts'
import { job, jobCancelled, jobTakingOver, jobThatFails } from './job-scenarios.ts'
import { preparedGids } from './prepared-gids.ts'
import { Relays } from './relays.ts'
import { cleaningUp, recovering, recoveringDecided, run, runThatFails, takingOver } from './run-scenarios.ts'
import { dueSchedule } from './schedule-scenario.ts'

/**
 * What is killed or cut in the crash tests: `arrange` once, `act` in the process that dies, `finish` in the one that
 * takes over; `check` then looks at the data alone.
 */
export type Scenario = {
  arrange: (ctx: JobContext) => Promise<void>
  act: (ctx: JobContext) => Promise<void>
  /** what a user or another worker does after recovery */
  finish: (ctx: JobContext) => Promise<void>
  check: (ctx: JobContext, killedAt: Step) => Promise<void>
}
// Assertions are Node's: the process that is killed loads this file without the test runner.

export type ScenarioName =
  | 'chunk'
  | 'chunk-poison'
  | 'chunk-ranges'
  | 'chunk-two-databases'
  | 'begin'
  | 'commit'
  | 'rollback'
  | 'run'
  | 'run-that-fails'
  | 'taking-over'
  | 'recovering'
  | 'recovering-decided'
  | 'cleaning-up'
  | 'schedule'
  | 'schedule-of-job'
  | 'job'
  | 'job-that-fails'
  | 'job-taking-over'
  | 'job-cancelled'
  | 'page-table'
  | 'page-stream'
  | 'page-parking'
  | 'page-parked'
  | 'idempotent'
  | 'expiring-keys'

/** Which scenarios come by each step. Total: a new step does not compile until somebody says who tests it. */
export const scenariosOf: Record<Step, ScenarioName[]> = {
  'chunk.staging': ['chunk', 'chunk-poison', 'chunk-ranges', 'cleaning-up', 'expiring-keys'],
  'chunk.prepared': ['chunk', 'chunk-poison', 'chunk-ranges', 'cleaning-up', 'expiring-keys'],
  'chunk.committed': ['chunk', 'chunk-poison', 'chunk-ranges', 'cleaning-up', 'expiring-keys'],
  'batch.ranges-recorded': ['chunk-ranges'],
  'batch.range-split': ['chunk-ranges'],
  'begin.recorded': ['begin', 'run', 'chunk-two-databases', 'job'],
  'begin.worked': ['begin', 'chunk-two-databases', 'job'],
  'begin.prepared-one': ['begin', 'chunk-two-databases', 'job'],
  'begin.prepared-all': ['begin', 'run', 'chunk-two-databases', 'job'],
  'begin.pending': ['begin', 'run', 'run-that-fails', 'chunk-two-databases', 'job', 'job-that-fails'],
  'run.effects': ['run', 'run-that-fails', 'taking-over', 'job', 'job-that-fails', 'job-taking-over'],
  'run.effects-done': ['run', 'taking-over', 'job', 'job-taking-over', 'job-cancelled'],
  'run.taken-over': ['taking-over', 'job-taking-over'],
  'commit.decided': ['commit', 'run', 'chunk-two-databases', 'job'],
  'commit.committed-one': ['commit', 'recovering-decided', 'chunk-two-databases', 'job'],
  'commit.committed-all': ['commit', 'recovering-decided', 'chunk-two-databases', 'job'],
  'commit.recorded': ['commit', 'run', 'recovering-decided', 'chunk-two-databases', 'job'],
  'rollback.decided': ['rollback', 'run-that-fails', 'job-that-fails', 'job-cancelled'],
  'rollback.fenced-one': ['rollback', 'recovering', 'job-that-fails', 'job-cancelled'],
  'rollback.fenced-all': ['rollback', 'recovering', 'job-that-fails', 'job-cancelled'],
  'rollback.recorded': [
    'rollback',
    'run-that-fails',
    'recovering',
    'cleaning-up',
    'job-that-fails',
    'job-cancelled',
  ],
  'compensation.claimed': ['run-that-fails', 'job-that-fails', 'job-cancelled'],
  'compensation.ran': ['run-that-fails', 'job-that-fails', 'job-cancelled'],
  'job.claimed': ['job', 'job-that-fails', 'job-taking-over', 'job-cancelled'],
  'job.committed': ['job', 'job-taking-over'],
  'job.failing': ['job-that-fails', 'job-cancelled'],
  'job.ended': ['job', 'job-that-fails', 'job-cancelled'],
  'recovery.listed': ['recovering', 'recovering-decided', 'cleaning-up'],
  'recovery.decided': ['recovering', 'cleaning-up'],
  'cleanup.recovered': ['cleaning-up'],
  'schedule.moved': ['schedule', 'schedule-of-job'],
  'schedule.recorded': ['schedule', 'schedule-of-job'],
  'schedule.committed': ['schedule', 'schedule-of-job'],
  'epoch.started': ['page-table', 'page-stream', 'page-parking', 'page-parked'],
  'page.staging': ['page-table', 'page-stream', 'page-parking', 'page-parked'],
  'page.prepared': ['page-table', 'page-stream', 'page-parking', 'page-parked'],
  'page.rejected': ['page-parking', 'page-parked'],
  'page.published': ['page-table', 'page-stream', 'page-parking', 'page-parked'],
  'page.committed': ['page-table', 'page-stream', 'page-parking', 'page-parked'],
  'idempotency.claimed': ['idempotent'],
  'idempotency.worked': ['idempotent'],
  'idempotency.completed': ['idempotent'],
}

/** The databases of a scenario: distributed transactions run on one, and on two in different clusters. */
export function databasesOf(which: ScenarioName): Record<string, 'east' | 'west'>[] {
  if (which === 'page-table' || which === 'chunk-two-databases') return [{ billing: 'west' }]
  if (which.startsWith('chunk') || which === 'page-stream' || which.startsWith('page-park')) return [{}]
  if (which === 'cleaning-up') return [{ billing: 'west' }]
  if (which === 'schedule' || which === 'schedule-of-job') return [{}]
  if (which === 'idempotent' || which === 'expiring-keys') return [{}]
  return [{}, { billing: 'west' }]
}

const name = 'order_1'
const rows = 47
const events = 25

export const copyBatch = defineBatch({
  name: 'copy',
  source: keyset<{ id: number }>({ table: 'source', key: ['id'] }),
  chunkSize: 10,
  async process(chunk, { tx, publish }) {
    for (const { id } of chunk) await tx`insert into target values (${id})`
    await publish(chunk.map(({ id }) => ({ type: 'row.copied', subject: String(id), data: { id } })))
  },
})
const batches = new Map([[copyBatch.name, copyBatch]])

export function scenario(which: ScenarioName, redis: string | undefined): Scenario {
  switch (which) {
    case 'chunk-poison':
      return chunkPoison
    case 'chunk-ranges':
      return chunkRanges
    case 'chunk-two-databases':
      return chunkTwoDatabases
    case 'chunk':
      return chunk
    case 'begin':
      return distributed(begin, finishBegun)
    case 'commit':
      return distributed(async (ctx) => {
        await begin(ctx)
        await commitDistributed(ctx, name)
      })
    case 'rollback':
      return distributed(async (ctx) => {
        await begin(ctx)
        await rollbackDistributed(ctx, name, 'test')
      })
    case 'idempotent':
      return completing
    case 'expiring-keys':
      return expiring
    case 'run':
      return run
    case 'run-that-fails':
      return runThatFails
    case 'taking-over':
      return takingOver
    case 'recovering':
      return recovering
    case 'recovering-decided':
      return recoveringDecided
    case 'cleaning-up':
      return cleaningUp
    case 'schedule':
      return dueSchedule(copyBatch)
    case 'schedule-of-job':
      return dueSchedule('job')
    case 'job':
      return job
    case 'job-that-fails':
      return jobThatFails
    case 'job-taking-over':
      return jobTakingOver
    case 'job-cancelled':
      return jobCancelled
    case 'page-table':
      return page(
        () => table({ database: 'billing' }),
        async (ctx) => {
          const billing = ctx.databases.get('billing')
          const found = await billing.sql<
            { id: number }[]
          >`select (data->>'n')::int as id from holdfast.inbox order by seq`
          return found.map((row) => row.id)
        },
      )
    case 'page-stream': {
      if (redis === undefined) throw new Error('needs Redis')
      return page(
        (ctx) => redisStream({ url: redis, stream: ctx.installation }),
        (ctx) => readStream(redis, ctx.installation),
      )
    }
    case 'page-parking':
      return parking
    case 'page-parked':
      return parkedAlready
  }
}

/** The numbers in the events of a stream, in its order. */
async function readStream(url: string, stream: string): Promise<number[]> {
  const { Redis } = await import('ioredis')
  const redis = new Redis(url)
  try {
    const entries = await redis.xrange(stream, '-', '+')
    return entries.map(([, fields]) => (JSON.parse(fields[1] ?? '') as { data: { n: number } }).data.n)
  } finally {
    redis.disconnect()
  }
}

const chunk: Scenario = {
  async arrange({ databases }) {
    await databases.primary.sql`create table source (id int primary key)`
    await databases.primary.sql`create table target (id int not null)`
    await databases.primary.sql`insert into source select generate_series(1, ${rows}::int)`
  },
  async act(ctx) {
    const { jobId } = await enqueueBatchJob(ctx, copyBatch, {}, 'test')
    await runBatch(ctx, batches, jobId, new AbortController().signal)
  },
  async finish(ctx) {
    const [job] = await ctx.databases.primary.sql<{ id: string }[]>`select id from holdfast.batch_jobs`
    const outcome = await runBatch(ctx, batches, job?.id ?? '', new AbortController().signal)
    assert.equal(outcome, 'completed')
  },
  async check({ databases }) {
    const expected = Array.from({ length: rows }, (_, i) => i + 1)
    const copied = await databases.primary.sql<{ id: number }[]>`select id from target order by id`
    assert.deepEqual(
      copied.map((row) => row.id),
      expected,
    )
    const published = await databases.primary.sql<{ id: number }[]>`
      select (event::json #>> '{data,id}')::int as id from holdfast.outbox order by 1`
    assert.deepEqual(
      published.map((row) => row.id),
      expected,
    )
    const [positions] = await databases.primary.sql<{ rows: number; chunks: number }[]>`
      select sum(rows)::int as rows, count(*)::int as chunks from holdfast.batch_positions`
    assert.deepEqual({ ...positions }, { rows, chunks: 5 })
  },
}

const badRow = 17

const poisonedBatch: BatchDefinition = {
  ...(copyBatch as BatchDefinition),
  name: 'copy-poisoned',
  skipLimit: 1,
  async process(chunkRows, context) {
    if (chunkRows.some((row) => (row as { id: number }).id === badRow))
      throw new Error('this row makes no sense')
    await (copyBatch as BatchDefinition).process(chunkRows, context)
  },
  async prepareRun({ tx }) {
    await tx`insert into hooks values ('prepared')`
  },
  async completed({ tx }) {
    await tx`insert into hooks values ('completed')`
  },
}

/** A chunk is narrowed down to a row that fails, which is set aside; around it the hooks. */
const chunkPoison: Scenario = {
  async arrange(ctx) {
    await chunk.arrange(ctx)
    await ctx.databases.primary.sql`create table hooks (what text)`
  },
  async act(ctx) {
    const { jobId } = await enqueueBatchJob(ctx, poisonedBatch, {}, 'test')
    await runPoisoned(ctx, jobId)
  },
  async finish(ctx) {
    const [job] = await ctx.databases.primary.sql<{ id: string }[]>`select id from holdfast.batch_jobs`
    assert.equal(await runPoisoned(ctx, job?.id ?? ''), 'completed')
  },
  async check(ctx) {
    const { sql } = ctx.databases.primary
    const expected = Array.from({ length: rows }, (_, i) => i + 1).filter((id) => id !== badRow)
    const copied = await sql<{ id: number }[]>`select id from target order by id`
    assert.deepEqual(
      copied.map((row) => row.id),
      expected,
    )
    const failures = await sql`select row_key, error, state from holdfast.batch_failures`
    assert.deepEqual(
      failures.map((row) => ({ ...row })),
      [{ row_key: [String(badRow)], error: 'this row makes no sense', state: 'failed' }],
    )
    const hooks = await sql<{ what: string }[]>`select what from hooks order by what`
    assert.deepEqual(
      hooks.map(({ what }) => what),
      ['completed', 'prepared'],
    )
    const [job] = await sql<{ id: string }[]>`select id from holdfast.batch_jobs`
    const proof = await verifyBatch(ctx, new Map([[poisonedBatch.name, poisonedBatch]]), job?.id ?? '')
    assert.deepEqual(
      [proof.missing, proof.changedChunks, proof.rows],
      [[], 0, { processed: BigInt(rows - 1), failed: 1n }],
    )
  },
}

function runPoisoned(ctx: JobContext, jobId: string): Promise<BatchOutcome> {
  const timing = { maxFailures: 1, backoffMs: 1, maxBackoffMs: 5 }
  const definitions = new Map([[poisonedBatch.name, poisonedBatch]])
  return runBatch(ctx, definitions, jobId, new AbortController().signal, timing)
}

/** The tests' work: one row in each database. */
async function begin(ctx: JobContext): Promise<void> {
  const work = Object.fromEntries(
    ctx.databases.names.map((participant) => [
      participant,
      async (tx: Parameters<typeof appendEvents>[0]) => {
        if (typeof tx === 'function') await tx`insert into orders values (1)`
        return participant
      },
    ]),
  )
  await beginDistributed(ctx, name, work)
}

/** After a crash in begin: what reached `pending` can be committed, what did not was rolled back and can be begun. */
async function finishBegun(ctx: JobContext): Promise<void> {
  const [row] = await ctx.databases.primary.sql<{ status: string }[]>`
    select status from holdfast.distributed_transactions order by created_at desc limit 1`
  if (row?.status !== 'pending') await begin(ctx)
  assert.equal((await commitDistributed(ctx, name)).state, 'committed')
}

function distributed(act: Scenario['act'], finish: Scenario['finish'] = async () => undefined): Scenario {
  return {
    async arrange({ databases }) {
      for (const participant of databases.all) await participant.sql`create table orders (id int)`
    },
    act,
    finish,
    async check(ctx, killedAt) {
      const kept = killedAt.startsWith('rollback.') ? 0 : 1
      for (const participant of ctx.databases.all) {
        assert.equal((await participant.sql`select 1 from orders`).length, kept, participant.name)
      }
      const [row] = await ctx.databases.primary.sql<{ status: string; quarantine: string | null }[]>`
        select status, quarantine from holdfast.distributed_transactions order by created_at desc limit 1`
      assert.deepEqual({ ...row }, { status: kept === 1 ? 'committed' : 'rolled_back', quarantine: null })
    },
  }
}

function page(
  sinkOf: (ctx: JobContext) => Sink,
  delivered: (ctx: JobContext) => Promise<number[]>,
): Scenario {
  const drain = async (ctx: JobContext) => {
    const open = await sinkOf(ctx).open(sinkContext(ctx, 'sink'))
    try {
      const relay = new Relays(ctx, open, { sink: 'sink', pageSize: 10, wants: () => true })
      return await relay.drain(new AbortController().signal)
    } finally {
      await open.close()
    }
  }
  return {
    async arrange({ databases }) {
      for (let n = 1; n <= events; n++) {
        await databases.primary.transaction((tx) =>
          appendEvents(tx, { type: 'test.counted', subject: 'a', data: { n } }),
        )
      }
    },
    async act(ctx) {
      await drain(ctx)
    },
    async finish(ctx) {
      assert.equal((await drain(ctx)).outcome, 'idle')
    },
    async check(ctx) {
      assert.deepEqual(
        await delivered(ctx),
        Array.from({ length: events }, (_, i) => i + 1),
      )
    },
  }
}

/** A receiver that remembers nothing: it writes down what comes, and rejects the tenth event until it is healed. */
function receiver({ databases: { primary } }: JobContext): Sink {
  return defineSink({
    async deliver(event) {
      const { n } = event.data as { n: number }
      if (n === 10 && (await primary.sql`select from healed`).length === 0)
        throw new RejectedEventError('ten is too much')
      await primary.sql`insert into received (event_id, key, n) values (${event.id}, ${event.partitionkey ?? ''}, ${n})`
    },
  })
}

async function drainReceiver(ctx: JobContext): Promise<string> {
  const open = await receiver(ctx).open(sinkContext(ctx, 'receiver'))
  const relays = new Relays(ctx, open, { sink: 'receiver', pageSize: 10, wants: () => true })
  return relays.drainToEnd(new AbortController().signal)
}

/** It is rejected and parked with what follows of its key; healed, everything comes, each key in its order. */
const parking: Scenario = {
  async arrange({ databases: { primary } }) {
    await primary.sql`create table healed ()`
    await primary.sql`
      create table received (seq int generated always as identity, event_id uuid not null, key text, n int not null)`
    for (let n = 1; n <= events; n++) {
      const subject = n % 2 === 0 ? 'even' : 'odd'
      await primary.transaction((tx) => appendEvents(tx, { type: 'test.counted', subject, data: { n } }))
    }
  },
  async act(ctx) {
    await drainReceiver(ctx)
  },
  async finish(ctx) {
    const { primary } = ctx.databases
    await drainReceiver(ctx)
    await primary.sql`insert into healed default values`
    await primary.sql`update holdfast.outbox_parked set retry_at = clock_timestamp() where retry_at is not null`
    assert.equal(await drainReceiver(ctx), 'idle')
  },
  async check({ databases: { primary } }) {
    // De-duplicated by the event's id, the first time counts.
    const rows = await primary.sql<{ n: number }[]>`
      select n from (select distinct on (event_id) * from received order by event_id, seq) firsts order by seq`
    const numbers = rows.map((row) => row.n)
    for (const odd of [0, 1]) {
      assert.deepEqual(
        numbers.filter((n) => n % 2 === odd),
        Array.from({ length: events }, (_, i) => i + 1).filter((n) => n % 2 === odd),
      )
    }
    assert.equal((await primary.sql`select from holdfast.outbox_parked`).length, 0)
  },
}

/** The same, killed while the parked events are tried again, in vain. */
const parkedAlready: Scenario = {
  ...parking,
  async arrange(ctx) {
    await parking.arrange(ctx)
    await drainReceiver(ctx)
    await ctx.databases.primary.sql`
      update holdfast.outbox_parked set retry_at = clock_timestamp() where retry_at is not null`
  },
}

/** What a later process does: the dead one's lease has run out, recovery looks twice, then the work goes on. */
export async function takeOver(ctx: JobContext, run: Scenario): Promise<void> {
  await ctx.databases.primary.sql`
    update holdfast.workers set lease_until = clock_timestamp() - interval '1 second' where id <> ${ctx.lease.id}`
  for (let round = 0; round < 2; round++) {
    const report = await recover(ctx)
    assert.equal(report.failed, 0)
  }
  await run.finish(ctx)
  assert.deepEqual(await preparedGids(ctx), [])
}
