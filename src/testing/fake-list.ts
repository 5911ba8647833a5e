import type { ListFilter, Status } from '../db/distributed-transactions.ts'
import { conclude, type Outcome, type ParticipantEvidence } from '../jobs/outcome.ts'
import type { FakeTransaction } from './fake-transactions.ts'

/** What is not at its end, has a compensation to do or needs an operator, oldest first; or all of one status, newest first. */
export function list(
  rows: readonly FakeTransaction[],
  { status, limit = 100 }: ListFilter = {},
): FakeTransaction[] {
  const found =
    status === undefined
      ? rows.filter((row) => !isEnd(row.status) || row.quarantine !== null || row.compensation === 'due')
      : rows.filter((row) => row.status === status).toReversed()
  return found.slice(0, limit)
}

function isEnd(status: Status): boolean {
  return status === 'committed' || status === 'rolled_back' || status === 'cleaned_up'
}

/** The evidence as the databases would show it, and the product's own conclusion from it. */
export function outcomeOf(row: FakeTransaction | undefined, configured: readonly string[]): Outcome {
  const names = row?.participants ?? configured
  const evidence = {
    attempt: row?.attempt ?? null,
    status: row?.status ?? null,
    decision: row?.decision ?? null,
    reason: row?.reason ?? null,
    quarantine: row?.quarantine ?? null,
    participants: Object.fromEntries(names.map((name) => [name, look(row)])),
    lastEvent: row?.history.at(-1) ?? null,
  }
  return { state: conclude(evidence), evidence }
}

function look(row: FakeTransaction | undefined): ParticipantEvidence {
  if (row?.decision === 'commit') return { prepared: false, marker: 'committed' }
  if (row?.decision === 'abort') return { prepared: false, marker: 'aborted' }
  return { prepared: row?.status === 'pending', marker: null }
}
