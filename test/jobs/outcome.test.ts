import { describe, expect, it } from 'vitest'
import { Databases } from '../../src/db/databases.ts'
import { listPrepared } from '../../src/db/prepared.ts'
import { stageForward } from '../../src/db/staged-transaction.ts'
import { watchSteps } from '../../src/db/steps.ts'
import { newAttempt } from '../../src/db/transaction-name.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed, rollbackDistributed } from '../../src/jobs/coordinator.ts'
import { conclude, type Evidence, outcome } from '../../src/jobs/outcome.ts'
import { recover } from '../../src/jobs/recovery.ts'
import { newDatabases, openContext } from '../support/database.ts'

const work = async () => null

async function arrange(): Promise<JobContext> {
  return openContext(await newDatabases({ billing: 'west' }))
}

async function byHand(ctx: JobContext, participant: string, verb: 'COMMIT' | 'ROLLBACK'): Promise<void> {
  const { sql } = ctx.databases.get(participant)
  for (const { gid } of await listPrepared(sql, ctx.installation))
    await sql.unsafe(`${verb} PREPARED '${gid}'`)
}

describe('outcome', () => {
  it('goes from never over prepared to committed', async () => {
    const ctx = await arrange()
    expect((await outcome(ctx, 'order_1')).state).toBe('never')
    await beginDistributed(ctx, 'order_1', { primary: work, billing: work })
    expect(await outcome(ctx, 'order_1')).toMatchObject({
      state: 'prepared',
      evidence: { status: 'pending', participants: { primary: { prepared: true, marker: null } } },
    })
    await commitDistributed(ctx, 'order_1')
    expect(await outcome(ctx, 'order_1')).toMatchObject({
      state: 'committed',
      evidence: { participants: { billing: { prepared: false, marker: 'committed' } } },
    })
  })

  it('is rolled_back after a rollback, proved by the fences', async () => {
    const ctx = await arrange()
    await beginDistributed(ctx, 'order_1', { primary: work, billing: work })
    await rollbackDistributed(ctx, 'order_1', 'test')
    expect(await outcome(ctx, 'order_1')).toMatchObject({
      state: 'rolled_back',
      evidence: { participants: { primary: { marker: 'aborted' }, billing: { marker: 'aborted' } } },
    })
  })

  it('is known of effect-free work, which has no row', async () => {
    const ctx = await arrange()
    const { databases, installation, lease } = ctx
    const spec = { installation, attempt: newAttempt(lease.id), name: 'chunk_1' }
    const states: string[] = []
    watchSteps({
      steps: new Set(['chunk.prepared']),
      reached: async () => void states.push((await outcome(ctx, 'chunk_1')).state),
    })
    await stageForward(databases.primary, spec, work).finally(() => watchSteps(undefined))
    expect([...states, (await outcome(ctx, 'chunk_1')).state]).toEqual(['prepared', 'committed'])
  })

  it('is unknown while a participant cannot be asked', async () => {
    const ctx = await arrange()
    await beginDistributed(ctx, 'order_1', { primary: work, billing: work })
    const half = {
      ...ctx,
      databases: new Databases({ primary: ctx.databases.primary.url, billing: 'postgres://x@127.0.0.1:1/x' }),
    }
    const asked = await outcome(half, 'order_1')
    expect(asked.state).toBe('unknown')
    expect(asked.evidence.participants.billing).toHaveProperty('unavailable')
    await half.databases.end()
    await rollbackDistributed(ctx, 'order_1', 'test')
  })

  it('is unknown when a hand contradicted the decision, and says so', async () => {
    const ctx = await arrange()
    await beginDistributed(ctx, 'order_1', { primary: work, billing: work })
    await byHand(ctx, 'billing', 'ROLLBACK')
    await commitDistributed(ctx, 'order_1')
    expect(await outcome(ctx, 'order_1')).toMatchObject({
      state: 'unknown',
      evidence: { decision: 'commit', quarantine: expect.stringContaining('billing') },
    })
  })

  it('never says anything but prepared or committed while a commit goes on', async () => {
    const ctx = await arrange()
    for (let round = 0; round < 20; round++) {
      const name = `order_${round}`
      await beginDistributed(ctx, name, { primary: work, billing: work })
      const states: string[] = []
      const ask = async (): Promise<void> => {
        const { state } = await outcome(ctx, name)
        states.push(state)
        if (state === 'prepared') await ask()
      }
      await Promise.all([ask(), commitDistributed(ctx, name)])
      expect(states.filter((state) => state !== 'prepared')).toEqual(['committed'])
    }
  })
})

describe('what was finished by hand', () => {
  it('before a decision is followed by the others and reported: a commit', async () => {
    const ctx = await arrange()
    await beginDistributed(ctx, 'order_1', { primary: work, billing: work })
    await byHand(ctx, 'billing', 'COMMIT')
    expect(await recover(ctx)).toMatchObject({ committed: 1 })
    const found = await outcome(ctx, 'order_1')
    expect(found).toMatchObject({ state: 'committed', evidence: { reason: 'committed by hand on billing' } })
    const [event] = await ctx.databases.primary.sql`
      select detail from holdfast.transaction_events where name = 'order_1' and event = 'committing'`
    expect(event?.detail).toMatchObject({ heuristic: true, evidence: { billing: { marker: 'committed' } } })
  })

  it('before a decision is followed by the others and reported: a rollback', async () => {
    const ctx = await arrange()
    await beginDistributed(ctx, 'order_1', { primary: work, billing: work })
    await byHand(ctx, 'billing', 'ROLLBACK')
    expect(await recover(ctx)).toMatchObject({ rolledBack: 1 })
    expect(await outcome(ctx, 'order_1')).toMatchObject({
      state: 'rolled_back',
      evidence: { reason: 'rolled back by hand, or lost, on billing' },
    })
  })
})

describe('conclude', () => {
  const evidence: Evidence = {
    attempt: null,
    status: null,
    decision: null,
    reason: null,
    quarantine: null,
    participants: { primary: { prepared: false, marker: null } },
    lastEvent: null,
  }

  it.each([
    ['never', {}],
    ['unknown', { participants: { primary: { unavailable: 'away' } } }],
    // Two absences after retention took the row: the audit still knows.
    ['committed', { lastEvent: 'committed' }],
    ['rolled_back', { lastEvent: 'cleaned_up' }],
    ['unknown', { lastEvent: 'started' }],
    ['prepared', { participants: { primary: { prepared: true, marker: null } } }],
    ['unknown', { status: 'started', participants: { primary: { prepared: false, marker: null } } }],
    ['committed', { status: 'committing', decision: 'commit' }],
    ['rolled_back', { status: 'rolling_back', decision: 'abort' }],
    [
      'unknown',
      {
        status: 'rolling_back',
        decision: 'abort',
        participants: { primary: { prepared: false, marker: 'committed' } },
      },
    ],
  ] as const)('%s from %j', (state, changes) => {
    expect(conclude({ ...evidence, ...changes })).toBe(state)
  })
})
