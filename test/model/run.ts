import type { Event } from '../../src/jobs/transitions.ts'
import { driveSteps, startDriving } from './drive.ts'
import {
  type Actor,
  type Guards,
  idle,
  leaseLives,
  type ModelStep,
  type Move,
  move,
  type Row,
  rowOf,
  type Setting,
  type State,
  withActor,
  withRow,
} from './state.ts'

/**
 * A run: the worker that begins the attempt, or the heir that finds it when the job is delivered again. It may crash
 * before every step, and go on after it lost its lease (a zombie).
 */
export function runSteps(state: State, setting: Setting, index: number): ModelStep[] {
  const actor = state.actors[index]
  if (!actor) return []
  const name = setting.cast[index] ?? ''
  const losesLease = { label: `${name}: loses its lease`, to: withActor(state, index, { lease: false }) }
  if (actor.at === 'over') return []
  if (actor.at === 'dead') return actor.lease ? [losesLease] : []
  const steps = actions(state, setting, index, actor, name)
  if (actor.at === 'idle') return steps
  steps.push({ label: `${name}: crashes`, to: crash(state, index, actor) })
  if (actor.lease) steps.push(losesLease)
  return steps
}

function actions(state: State, setting: Setting, index: number, actor: Actor, name: string): ModelStep[] {
  const goes = (label: string, to: State, breaks?: string): ModelStep[] => [
    { label: `${name}: ${label}`, to, breaks },
  ]
  switch (actor.at) {
    case 'idle':
      return setting.cast[index] === 'worker'
        ? insert(state, index, name)
        : inherit(state, setting, index, name)
    case 'inserted':
      return goes('sends the PREPAREs', {
        ...withActor(state, index, { at: 'staging' }),
        participants: state.participants.map(({ marker }) => ({ gid: 'preparing', marker })),
      })
    case 'staging':
      // An answer may be lost, so it can give up whatever became of its PREPAREs.
      return [...recordPending(state, setting, index, name), ...decideAbort(state, setting, index, name)]
    case 'ready':
      return goes(
        'starts the effects',
        withActor({ ...state, uncompensated: true }, index, { at: 'effects' }),
        wasPending(state.row) ? undefined : 'effects before the row was pending',
      )
    case 'effects': {
      const back = withActor({ ...state, uncompensated: true }, index, { ranEffects: true })
      return [
        ...goes('its effects succeed', withActor(back, index, { at: 'decide-commit' })),
        ...goes('its effects fail', withActor(back, index, { at: 'decide-abort' })),
      ]
    }
    case 'decide-commit':
      return decideCommit(state, setting, index, name)
    case 'decide-abort':
      return decideAbort(state, setting, index, name)
    case 'look':
      return goes(`reads the row: ${state.row?.status}`, look(state, index))
    case 'commit':
    case 'abort':
      return driveSteps(state, setting, {
        name,
        index,
        direction: actor.at,
        endsWith: actor.at === 'commit' ? 'all-committed' : 'all-fenced',
        leave: (after) => withActor(after, index, { at: 'release', progress: '' }),
      })
    default:
      return goes('ends', release(state, setting, index, actor))
  }
}

function insert(state: State, index: number, name: string): ModelStep[] {
  if (state.row !== null) return []
  const row = rowOf({
    status: 'started',
    decision: 'none',
    owner: index,
    pastDeadline: false,
    quarantined: false,
    compensation: 'none',
  })
  return [{ label: `${name}: inserts the row`, to: { ...withActor(state, index, { at: 'inserted' }), row } }]
}

/**
 * Taking over is one compare-and-set, on status, owner and lease; it extends the deadline. Of a decided attempt the heir
 * would be one more that drives it, as a recoverer does.
 */
function inherit(state: State, { guards }: Setting, index: number, name: string): ModelStep[] {
  const { row } = state
  if (row === null || row.decision !== 'none') return []
  if (guards.leaseBeforeTakeOver && leaseLives(state, row.owner)) return []
  const taken = withRow(state, { owner: index, pastDeadline: false })
  const at = row.status === 'started' ? 'decide-abort' : 'ready'
  return [{ label: `${name}: takes over what is ${row.status}`, to: withActor(taken, index, { at }) }]
}

function recordPending(state: State, { guards }: Setting, index: number, name: string): ModelStep[] {
  if (state.participants.some(({ gid }) => gid === 'preparing' || gid === 'failed')) return []
  if (!guards.pendingBeforeEffects) {
    return [{ label: `${name}: all have prepared`, to: withActor(state, index, { at: 'ready' }) }]
  }
  const { outcome, to, breaks } = moveOwn(state, guards, 'all-prepared', index)
  const at = outcome === 'done' ? 'ready' : 'decide-abort'
  return [{ label: `${name}: all-prepared: ${outcome}`, to: withActor(to, index, { at }), breaks }]
}

function decideCommit(state: State, { guards }: Setting, index: number, name: string): ModelStep[] {
  if (!guards.decisionBeforeCommit) {
    return [{ label: `${name}: commits before deciding`, to: startDriving(state, index, 'commit') }]
  }
  const { outcome, to, breaks } = moveOwn(state, guards, 'decide-commit', index)
  const next = outcome === 'done' ? startDriving(to, index, 'commit') : withActor(to, index, { at: 'look' })
  return [{ label: `${name}: decide-commit: ${outcome}`, to: next, breaks }]
}

function decideAbort(state: State, { guards }: Setting, index: number, name: string): ModelStep[] {
  const { outcome, to, breaks } = moveOwn(state, guards, 'decide-abort', index)
  const next = outcome === 'done' ? startDriving(to, index, 'abort') : withActor(to, index, { at: 'look' })
  return [{ label: `${name}: decide-abort: ${outcome}`, to: next, breaks }]
}

/** A run that was taken over leaves the row to the one that did. */
function moveOwn(state: State, guards: Guards, event: Event, index: number): Move {
  const owner = state.row?.owner ?? index
  const moved = move(state, guards, event, {}, () => !guards.stepsOfTheOwner || owner === index)
  const another = moved.outcome === 'done' && owner !== index && leaseLives(state, owner)
  return another ? { ...moved, breaks: 'a run moved what a live one had taken over' } : moved
}

/** Whoever lost a compare-and-set does what the row says. */
function look(state: State, index: number): State {
  if (state.row?.status === 'committing') return startDriving(state, index, 'commit')
  if (state.row?.status === 'rolling_back') return startDriving(state, index, 'abort')
  return withActor(state, index, { at: 'release' })
}

function release(state: State, { guards }: Setting, index: number, actor: Actor): State {
  const { row } = state
  // Its process lives on, and so does its lease.
  if (!actor.ranEffects && !guards.everyRunEnds)
    return withActor(state, index, { ...idle, at: 'over', lease: actor.lease })
  const over = withActor(state, index, { ...idle, at: 'over' })
  if (row === null) return over
  const own = row.owner === index
  const backTooLate = actor.ranEffects && row.decision === 'abort' && row.compensation !== 'none'
  const frees = own || (backTooLate && !guards.endsOnlyItself)
  const freed = frees ? withRow(over, { owner: null }) : over
  if (!backTooLate || !guards.dueAgain || !(own || guards.dueAgainByAnyRun)) return freed
  const compensator = { ...state.compensator, outdated: state.compensator.at !== 'idle' }
  return { ...withRow(freed, { compensation: 'due' }), compensator }
}

/**
 * The lease outlives the process. What the effects of a zombie did after their compensation, only the service that
 * received them can undo: the zombie that ends before it tells is the one that is not asked for.
 */
function crash(state: State, index: number, actor: Actor): State {
  const compensated = state.row?.compensation === 'done' || state.compensator.at === 'ran'
  const untold = (actor.ranEffects || actor.at === 'effects') && !actor.lease && compensated
  // Nobody looks at the lease of a process that owns nothing.
  const lease = actor.lease && state.row?.owner === index
  const dead = withActor(state, index, { ...idle, at: 'dead', lease })
  return { ...dead, uncompensated: state.uncompensated && !untold }
}

/** Aborting what was pending makes its compensation due, so the row tells it also afterwards. */
function wasPending(row: Row | null): boolean {
  return row !== null && row.status !== 'started' && (row.decision !== 'abort' || row.compensation !== 'none')
}
