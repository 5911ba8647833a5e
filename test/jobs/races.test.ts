import { setTimeout as pause } from 'node:timers/promises'
import { afterEach, describe, expect, it } from 'vitest'
import { insertStarted } from '../../src/db/attempts.ts'
import { findByName } from '../../src/db/distributed-transactions.ts'
import { CommittedError, HoldfastError, NameInUseError, RolledBackError } from '../../src/db/errors.ts'
import { sealText } from '../../src/db/markers.ts'
import { StagedTransaction } from '../../src/db/staged-transaction.ts'
import { watchSteps } from '../../src/db/steps.ts'
import { formatGid, newAttempt, newOwnerId } from '../../src/db/transaction-name.ts'
import type { Tx } from '../../src/db/tx.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { cleanStaleTransactions } from '../../src/jobs/clean-stale-transactions.ts'
import { compensate, dueCompensations } from '../../src/jobs/compensate.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed, rollbackDistributed } from '../../src/jobs/coordinator.ts'
import { recover } from '../../src/jobs/recovery.ts'
import { runDistributed } from '../../src/jobs/run-distributed.ts'
import { vote } from '../../src/jobs/vote.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'

/**
 * Two or three act on one name at once, many times over, with random delays; after each round the data say that it came
 * to one outcome on both databases. Several names are raced side by side, so what recovers one meets the others too.
 */
const rounds = 200
const lanes = 4

// The same seed makes the same delays; what the scheduler does with them differs.
const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31))

/** Mulberry32: small, seedable, good enough for delays. */
function randomFrom(start: number): () => number {
  let state = start
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

type Round = {
  id: number
  name: string
  /** a number from 0 to below 1 */
  random: () => number
  /** acts after a random delay of up to so many milliseconds, often none at all */
  soon: <T>(maxMs: number, act: () => Promise<T>) => Promise<T>
}

const urls = await newDatabases({ billing: 'west' })
const [first, second, third, fourth] = [
  await openContext(urls),
  await openContext(urls),
  await openContext(urls),
  await openContext(urls),
]
const { primary } = first.databases
for (const participant of first.databases.all) await participant.sql`create table orders (id int primary key)`
await primary.sql`
  create table ledger (key text primary key, id int not null, charged int not null, undone int not null default 0)`
afterEach(async () => {
  watchSteps(undefined)
  await primary.sql`
    update holdfast.workers set lease_until = clock_timestamp() + interval '1 minute' where id = ${first.lease.id}`
})

let serial = 0
const signal = new AbortController().signal
const retention = { transactionsMs: 86_400_000, eventsMs: 86_400_000 }

/** Runs all rounds; returns which outcomes there were. */
async function race(what: string, round: (round: Round) => Promise<string>): Promise<string[]> {
  let left = rounds
  const outcomes = new Set<string>()
  await Promise.all(
    Array.from({ length: lanes }, async () => {
      while (left-- > 0) {
        const id = ++serial
        const random = randomFrom(seed + id)
        const soon = async <T>(maxMs: number, act: () => Promise<T>) => {
          const ms = random() < 0.3 ? 0 : random() * maxMs
          if (ms > 0) await pause(ms)
          return act()
        }
        try {
          outcomes.add(await round({ id, name: `${what}_${id}`, random, soon }))
        } catch (error) {
          left = 0
          throw new Error(`${what}_${id} with SEED=${seed}: ${String(error)}`, { cause: error })
        }
      }
    }),
  )
  expect(await preparedGids(first)).toEqual([])
  return [...outcomes].toSorted()
}

const workFor = (id: number) => ({
  primary: async (tx: Tx) => {
    await tx`insert into orders values (${id})`
  },
  billing: async (tx: Tx) => {
    await tx`insert into orders values (${id})`
  },
})

/** A failure that the caller may meet; anything else ends the race. */
function mustBeTyped(settled: PromiseSettledResult<unknown>): void {
  if (settled.status === 'rejected' && !(settled.reason instanceof HoldfastError)) throw settled.reason
}

/** Recovery until the name is at its end. What waits for a hand or for votes ends at its deadline. */
async function settle(ctx: JobContext, name: string): Promise<void> {
  const end = ['committed', 'rolled_back', 'cleaned_up']
  for (let tries = 0; ; tries++) {
    const row = await findByName(primary.sql, name)
    if (row === undefined || end.includes(row.status)) return
    if (tries > 200) throw new Error(`${name} stays ${row.status}`)
    await recover(ctx)
    await pause(5)
  }
}

/** The one outcome of a name, from the data of both databases; throws where they or the decision disagree. */
async function outcomeOf({ id, name }: Round): Promise<'committed' | 'rolled_back'> {
  const rows = await primary.sql<
    { attempt: string; status: string; decision: string; quarantine: string | null }[]
  >`
    select attempt, status, decision, quarantine from holdfast.distributed_transactions where name = ${name}`
  const kept = await Promise.all(
    first.databases.all.map(async (p) => (await p.sql`select from orders where id = ${id}`).length),
  )
  for (const { attempt, status, decision, quarantine } of rows) {
    expect(quarantine).toBe(null)
    expect(decision).toBe(status === 'committed' ? 'commit' : 'abort')
    // Whatever was decided, the marker of each database says the same.
    const markers = await Promise.all(
      first.databases.all.map(
        (p) =>
          p.sql<{ outcome: string }[]>`
            select outcome from holdfast.transaction_markers where attempt = ${attempt}`,
      ),
    )
    const outcome = status === 'committed' ? 'committed' : 'aborted'
    expect(markers.map((found) => found.map((one) => one.outcome))).toEqual([[outcome], [outcome]])
  }
  const committed = rows.filter(({ status }) => status === 'committed').length
  expect(kept).toEqual([committed, committed])
  const ours = (await preparedGids(first)).filter((gid) => gid.endsWith(`/${name}`))
  expect(ours).toEqual([])
  return committed === 1 ? 'committed' : 'rolled_back'
}

/** A payment service that knows idempotency keys, and a compensation that takes back what was charged. */
function specFor({ id, random, soon }: Round, refused: number) {
  return {
    operation: 'order',
    stage: workFor(id),
    effects: async ({ idempotencyKey }: { idempotencyKey: string }) => {
      const refuses = random() < refused
      await soon(15, async () => {
        await primary.sql`
          insert into ledger (key, id, charged) values (${idempotencyKey}, ${id}, 1) on conflict do nothing`
      })
      if (refuses) throw new RefusedError('card refused')
      return 'charged'
    },
    compensate: async ({ attempt }: { attempt: string }) => {
      await primary.sql`update ledger set undone = 1 where key = ${attempt}`
    },
  }
}

class RefusedError extends HoldfastError {
  readonly code = 'HOLDFAST_NOT_ALLOWED'
}

/** Each name that committed was charged exactly once; what was charged for an aborted attempt was taken back. */
async function checkLedger({ id, name }: Round): Promise<void> {
  await expect
    .poll(async () => {
      for (const { attempt, name: due } of await dueCompensations(fourth))
        if (due === name) await compensate(fourth, attempt, signal)
      const [row] = await primary.sql`
        select 1 from holdfast.distributed_transactions where name = ${name} and compensation = 'due'`
      return row === undefined
    })
    .toBe(true)
  const standing = await primary.sql<{ key: string }[]>`
    select key from ledger where id = ${id} and charged = 1 and undone = 0`
  const committed = await primary.sql<{ key: string }[]>`
    select replace(attempt::text, '-', '') as key from holdfast.distributed_transactions
    where name = ${name} and status = 'committed'`
  expect([...standing]).toEqual([...committed])
}

describe('races', () => {
  it('commit against rollback: one wins, the other is told', async () => {
    const outcomes = await race('ends', async (round) => {
      const { name, soon } = round
      await beginDistributed(first, name, workFor(round.id))
      const [commit, rollback] = await Promise.allSettled([
        soon(10, () => commitDistributed(second, name)),
        soon(10, () => rollbackDistributed(third, name, 'raced')),
      ])
      if (commit.status === 'rejected') expect(commit.reason).toBeInstanceOf(RolledBackError)
      if (rollback.status === 'rejected') expect(rollback.reason).toBeInstanceOf(CommittedError)
      expect([commit.status, rollback.status].toSorted()).toEqual(['fulfilled', 'rejected'])
      const outcome = await outcomeOf(round)
      expect(outcome).toBe(commit.status === 'fulfilled' ? 'committed' : 'rolled_back')
      return outcome
    })
    expect(outcomes).toEqual(['committed', 'rolled_back'])
  })

  it('commit against the clean-up, at the deadline', async () => {
    const outcomes = await race('deadline', async (round) => {
      const { name, soon, random } = round
      const begun = await Promise.allSettled([
        beginDistributed(first, name, workFor(round.id), { deadlineMs: 30 + random() * 60 }),
      ])
      mustBeTyped(begun[0])
      const [commit, cleanUp] = await Promise.allSettled([
        begun[0].status === 'fulfilled' ? soon(60, () => commitDistributed(second, name)) : undefined,
        soon(60, () => cleanStaleTransactions(third, retention, signal)),
      ])
      mustBeTyped(commit)
      if (cleanUp.status === 'rejected') throw cleanUp.reason
      expect(cleanUp.value.failed).toBe(0)
      await settle(fourth, name)
      const outcome = await outcomeOf(round)
      if (begun[0].status === 'rejected') expect(outcome).toBe('rolled_back')
      else expect(outcome).toBe(commit.status === 'fulfilled' ? 'committed' : 'rolled_back')
      return outcome
    })
    expect(outcomes).toEqual(['committed', 'rolled_back'])
  })

  it('two recoverers never disturb a live run', async () => {
    const outcomes = await race('live', async (round) => {
      const { name, soon } = round
      const [run, ...recoveries] = await Promise.allSettled([
        runDistributed(first, name, specFor(round, 0)),
        soon(20, () => recover(second)),
        soon(40, () => recover(third)),
      ])
      if (run.status === 'rejected') throw run.reason
      for (const recovery of recoveries) {
        if (recovery.status === 'rejected') throw recovery.reason
        expect(recovery.value.failed).toBe(0)
      }
      expect(run.value.state).toBe('committed')
      await checkLedger(round)
      return outcomeOf(round)
    })
    expect(outcomes).toEqual(['committed'])
  })

  it('two recoverers and a run that loses its lease, at any moment', async () => {
    const outcomes = await race('lost', async (round) => {
      const { name, soon } = round
      const losing = async () => {
        await primary.sql`
          update holdfast.workers set lease_until = clock_timestamp() - interval '1 second' where id = ${first.lease.id}`
      }
      const spec = specFor(round, 0.2)
      const [run, , ...recoveries] = await Promise.allSettled([
        runDistributed(first, name, spec),
        soon(20, losing),
        soon(30, () => recover(second)),
        soon(40, () => recover(third)),
      ])
      mustBeTyped(run)
      for (const recovery of recoveries) if (recovery.status === 'rejected') throw recovery.reason
      // The queue delivers it again, elsewhere.
      await again(second, round)
      await checkLedger(round)
      expect(await outcomeOf(round)).toBe('committed')
      return run.status
    })
    // Often enough the run was the one that did not make it.
    expect(outcomes).toEqual(['fulfilled', 'rejected'])
  })

  it('two workers with the same name', async () => {
    const outcomes = await race('twice', async (round) => {
      const { name, soon, random } = round
      const refused = random() < 0.3 ? 0.5 : 0
      const runs = await Promise.allSettled([
        soon(20, () => runDistributed(first, name, specFor(round, refused))),
        soon(20, () => runDistributed(second, name, specFor(round, refused))),
      ])
      for (const run of runs) mustBeTyped(run)
      if (refused === 0) {
        // Nothing fails here but a second one that steps back.
        for (const run of runs)
          if (run.status === 'rejected') expect(run.reason).toBeInstanceOf(NameInUseError)
        expect(runs.some((run) => run.status === 'fulfilled')).toBe(true)
      }
      const outcome = await outcomeOf(round)
      if (runs.some((run) => run.status === 'fulfilled')) expect(outcome).toBe('committed')
      await checkLedger(round)
      return outcome
    })
    expect(outcomes).toEqual(['committed', 'rolled_back'])
  })

  it('a PREPARE that comes late against a rollback', async () => {
    const random = randomFrom(seed)
    watchSteps({ steps: new Set(['begin.worked']), reached: () => pause(random() * 15) })
    const outcomes = await race('late', async (round) => {
      const { name, soon } = round
      const begun = beginDistributed(first, name, workFor(round.id))
      begun.catch(() => undefined)
      while ((await findByName(primary.sql, name)) === undefined) await pause(1)
      const [begin, rollback] = await Promise.allSettled([
        begun,
        soon(20, () => rollbackDistributed(second, name, 'raced')),
      ])
      mustBeTyped(begin)
      if (rollback.status === 'rejected') throw rollback.reason
      await settle(third, name)
      return outcomeOf(round)
    })
    expect(outcomes).toEqual(['rolled_back'])
  })

  it('a PREPARE that a dead process had sent against the recovery of its attempt', async () => {
    const outcomes = await race('dead', async (round) => {
      const { id, name, soon } = round
      const owner = newOwnerId()
      const attempt = newAttempt(owner)
      await insertStarted(primary, {
        attempt,
        name,
        operation: null,
        participants: ['primary', 'billing'],
        owner,
        resumable: false,
        deadlineMs: 60_000,
        correlationId: name,
        traceparent: null,
        metadata: null,
        finishers: null,
        compensates: false,
        awaits: [],
        waitingLimit: undefined,
      })
      const prepared = await Promise.allSettled([
        ...first.databases.all.map(async (participant) => {
          const parts = { installation: first.installation, policy: 'presumed-abort' as const, attempt, name }
          const gid = formatGid({ ...parts, participant: participant.name })
          const staged = await StagedTransaction.open(participant, gid, attempt)
          await staged.run((tx) => tx`insert into orders values (${id})`)
          await soon(15, () => staged.prepare(sealText(participant.name)))
        }),
        soon(15, () => recover(second)),
        soon(15, () => recover(third)),
      ])
      for (const one of prepared) mustBeTyped(one)
      await settle(fourth, name)
      return outcomeOf(round)
    })
    expect(outcomes).toEqual(['rolled_back'])
  })

  it('the last votes against the deadline', async () => {
    const outcomes = await race('votes', async (round) => {
      const { name, soon, random } = round
      const awaits = ['email', 'shipping']
      const deadlineMs = 40 + random() * 80
      const early = random() < 0.3
      const begun = beginDistributed(first, name, workFor(round.id), { awaits, deadlineMs })
      begun.catch(() => undefined)
      if (early) while ((await findByName(primary.sql, name)) === undefined) await pause(1)
      else await Promise.allSettled([begun])
      const [begin, recovery, ...votes] = await Promise.allSettled([
        begun,
        soon(120, () => recover(second)),
        ...awaits.map((service) => soon(100, () => vote(third, name, service, 'ready'))),
      ])
      mustBeTyped(begin)
      if (recovery.status === 'rejected') throw recovery.reason
      for (const one of votes) mustBeTyped(one)
      await settle(fourth, name)
      const outcome = await outcomeOf(round)
      const said = votes.map((one) => (one.status === 'fulfilled' ? one.value.state : 'refused'))
      if (said.some((state) => state === 'committing' || state === 'committed'))
        expect(outcome).toBe('committed')
      if (said.includes('refused')) expect(outcome).toBe('rolled_back')
      // Committed only with every vote; a vote that counted without deciding may be overtaken by the deadline.
      const cast = await primary.sql`
        select 1 from holdfast.transaction_votes v join holdfast.distributed_transactions t using (attempt)
        where t.name = ${name} and v.vote = 'ready'`
      if (outcome === 'committed') expect(cast.length).toBe(2)
      // Once it was pending the last vote decides there and then: both cast and rolled back all the same cannot be.
      if (!early && begin.status === 'fulfilled') expect(cast.length === 2).toBe(outcome === 'committed')
      return outcome
    })
    expect(outcomes).toEqual(['committed', 'rolled_back'])
  })
})

/** As a queue does: delivered until it has succeeded or was refused for good. */
async function again(ctx: JobContext, round: Round): Promise<void> {
  for (let tries = 0; tries < 50; tries++) {
    const [run] = await Promise.allSettled([runDistributed(ctx, round.name, specFor(round, 0))])
    if (run?.status === 'fulfilled') return
    mustBeTyped(run)
    await recover(ctx)
    await pause(5)
  }
  throw new Error(`${round.name} is still not run`)
}
