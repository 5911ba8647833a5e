import { type Deferred, deferred } from '../db/deferred.ts'

/** What commits together or not at all: an attempt of a distributed transaction, or a plain transaction. */
export type FakeUnit = {
  /** both null of a plain transaction */
  readonly name: string | null
  readonly attempt: string | null
  decision: 'commit' | 'abort' | null
}

/** What became of something that a unit did; `unknown`: a transaction of the caller's own did it. */
export type UnitState = 'pending' | 'committed' | 'rolled_back' | 'unknown'

const decisions = new WeakMap<FakeUnit, Deferred<void>>()

export function newPlainUnit(decision: FakeUnit['decision'] = null): FakeUnit {
  return { name: null, attempt: null, decision }
}

export function stateOf(unit: FakeUnit | undefined): UnitState {
  if (unit === undefined) return 'unknown'
  if (unit.decision === null) return 'pending'
  return unit.decision === 'commit' ? 'committed' : 'rolled_back'
}

export function isAborted({ decision }: FakeUnit): boolean {
  return decision === 'abort'
}

export function decide(unit: FakeUnit, decision: 'commit' | 'abort'): void {
  unit.decision = decision
  tellDecision(unit)
}

/** Lets those go on that wait for the decision, if there is one now. */
export function tellDecision(unit: FakeUnit): void {
  if (unit.decision !== null) decisions.get(unit)?.resolve()
}

/** Resolves when a unit is decided, which in a fake is its end in every database. */
export async function whenDecided(unit: FakeUnit): Promise<void> {
  if (unit.decision !== null) return
  const decided = decisions.get(unit) ?? deferred<void>()
  decisions.set(unit, decided)
  await decided.promise
}
