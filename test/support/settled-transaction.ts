import assert from 'node:assert/strict'
import {
  type DistributedTransaction,
  listAttemptsOf,
  type Status,
} from '../../src/db/distributed-transactions.ts'
import { readMarker } from '../../src/db/markers.ts'
import { listEvents } from '../../src/db/transaction-events.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { transitions } from '../../src/jobs/transitions.ts'

/**
 * Every attempt of a name is at an end that row, audit and markers agree on: the row has nothing outstanding, the audit
 * tells one way through the transition table that leads to where the row is, and the marker in each participant says the
 * same. Returns the attempts that committed, of which there is one at the most.
 */
export async function checkSettled(ctx: JobContext, name: string): Promise<string[]> {
  const { sql } = ctx.databases.primary
  const events = await listEvents(sql, name)
  const attempts = await listAttemptsOf(sql, name)
  for (const row of attempts) {
    const told = events.filter(({ attempt }) => attempt === row.attempt)
    checkAudit(row, told)
    assert.equal(row.quarantine, null)
    assert(['none', 'done'].includes(row.compensation), `the compensation of ${name} is ${row.compensation}`)
    for (const participant of row.participants) {
      const marker = await readMarker(ctx.databases.get(participant), row.attempt)
      assert.equal(marker, row.status === 'committed' ? 'committed' : 'aborted', `marker in ${participant}`)
    }
  }
  assert.deepEqual(
    new Set(events.map(({ attempt }) => attempt)),
    new Set(attempts.map(({ attempt }) => attempt)),
  )
  const committed = attempts.filter(({ status }) => status === 'committed').map(({ attempt }) => attempt)
  assert(committed.length <= 1, `${name} committed ${committed.length} times`)
  return committed
}

function checkAudit(
  { name, status, decision, attempt }: DistributedTransaction,
  told: { event: string }[],
): void {
  const way = told.map(({ event }) => event).filter((event) => event in transitions) as Status[]
  const says = `${name}, attempt ${attempt}: ${told.map(({ event }) => event).join(' → ')}`
  assert.equal(way[0], 'started', says)
  for (const [i, next] of way.slice(1).entries())
    assert(Object.values(transitions[way[i]!]).includes(next), says)
  assert.equal(way.at(-1), status, says)
  assert(['committed', 'rolled_back', 'cleaned_up'].includes(status), says)
  assert.equal(decision, status === 'committed' ? 'commit' : 'abort', says)
  assert(!told.some(({ event }) => event === 'requires_manual_intervention'), says)
  if (decision === 'commit') assert(!told.some(({ event }) => event.startsWith('compensat')), says)
}
