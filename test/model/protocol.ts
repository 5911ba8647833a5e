import { judge } from '../../src/jobs/verdict.ts'
import { type Exploration, explore, type Model, stillAtWork } from './explore.ts'
import { recovererSteps } from './recoverer.ts'
import { runSteps } from './run.ts'
import {
  allGuards,
  type Guards,
  initialState,
  isEnded,
  keyOf,
  leaseLives,
  type ModelStep,
  type Setting,
  type State,
  withParticipant,
  withRow,
} from './state.ts'

/**
 * The protocol of distributed transactions as a model: the status moves by the product's transition table, recovery
 * decides by the product's `judge`; the other steps follow begin, run-distributed, finish, recovery and compensate
 * statement by statement. Left out: a second attempt of the name, which begins only where the first has ended; votes;
 * participants that cannot be reached; and more than one crash of a run, since who follows it is the heir.
 */
export type Options = Pick<Setting, 'participants' | 'cast'> & {
  compensator?: boolean
  hand?: boolean
  coarse?: boolean
  /** the guards that are taken out */
  without?: readonly (keyof Guards)[]
  judge?: typeof judge
  /** rules that may be broken, to see what comes of it */
  tolerate?: readonly string[]
}

const maxStates = 1_000_000

export function exploreProtocol(options: Options): Exploration {
  const setting: Setting = {
    participants: options.participants,
    cast: options.cast,
    compensator: options.compensator ?? false,
    hand: options.hand ?? false,
    coarse: options.coarse ?? false,
    guards: { ...allGuards, ...Object.fromEntries((options.without ?? []).map((guard) => [guard, false])) },
    judge: options.judge ?? judge,
  }
  const tolerated = new Set(options.tolerate)
  const model: Model<State> = {
    initial: initialState(setting),
    steps: (state) =>
      allSteps(state, setting).map((step) =>
        step.breaks !== undefined && tolerated.has(step.breaks) ? { label: step.label, to: step.to } : step,
      ),
    key: (state) => keyOf(state, setting.cast),
    broken,
    unfinished: (state) => unfinished(state, setting),
  }
  return explore(model, maxStates)
}

function allSteps(state: State, setting: Setting): ModelStep[] {
  const steps = arrivals(state)
  for (const [index, role] of setting.cast.entries()) {
    const ofActor = role === 'worker' || role === 'heir' ? runSteps : recovererSteps
    steps.push(...ofActor(state, setting, index))
  }
  if (state.row?.decision === 'none' && !state.row.pastDeadline)
    steps.push({ label: 'the deadline passes', to: withRow(state, { pastDeadline: true }) })
  if (setting.hand && !state.handUsed) steps.push(...handSteps(state))
  if (setting.compensator) steps.push(...compensatorSteps(state, setting.guards))
  return steps
}

/** A PREPARE that was sent arrives or fails, and at the fence it always fails. */
function arrivals(state: State): ModelStep[] {
  return state.participants.flatMap(({ gid, marker }, on) => {
    if (gid !== 'preparing') return []
    const fails = { label: `the PREPARE on p${on} fails`, to: withParticipant(state, on, { gid: 'failed' }) }
    if (marker === 'aborted') return [fails]
    return [
      { label: `the PREPARE on p${on} arrives`, to: withParticipant(state, on, { gid: 'prepared' }) },
      fails,
    ]
  })
}

function handSteps(state: State): ModelStep[] {
  return state.participants.flatMap(({ gid }, on) => {
    if (gid !== 'prepared') return []
    const used = { ...state, handUsed: true }
    return [
      {
        label: `psql: COMMIT PREPARED of p${on}`,
        to: withParticipant(used, on, { gid: 'gone', marker: 'committed' }),
      },
      { label: `psql: ROLLBACK PREPARED of p${on}`, to: withParticipant(used, on, { gid: 'gone' }) },
    ]
  })
}

function compensatorSteps(state: State, guards: Guards): ModelStep[] {
  const { row, compensator } = state
  if (row === null) return []
  const crash = {
    label: 'compensator: crashes',
    to: { ...state, compensator: { at: 'idle', outdated: false } } as const,
  }
  switch (compensator.at) {
    case 'idle': {
      const proved = row.status === 'rolled_back' || row.status === 'cleaned_up'
      if (row.compensation !== 'due' || row.decision !== 'abort' || row.quarantined) return []
      if (guards.compensateAfterProof && !proved) return []
      if (guards.compensateAfterRun && leaseLives(state, row.owner)) return []
      // It becomes the owner, whose lease ends with it: to the others that is as good as none.
      const claimed = withRow(state, { owner: null })
      return [
        {
          label: 'compensator: claims it',
          to: { ...claimed, compensator: { at: 'running', outdated: false } },
        },
      ]
    }
    case 'running':
      return [
        {
          label: 'compensator: compensates',
          to: { ...state, uncompensated: false, compensator: { ...compensator, at: 'ran' } },
          breaks: brokenByCompensation(state),
        },
        crash,
      ]
    default: {
      const ended = { ...state, compensator: { at: 'idle', outdated: false } } as const
      const counts = !compensator.outdated || !guards.doneOnlyIfStillSame
      return [
        { label: 'compensator: records it', to: counts ? withRow(ended, { compensation: 'done' }) : ended },
        crash,
      ]
    }
  }
}

function brokenByCompensation({ participants, actors }: State): string | undefined {
  if (participants.some(({ marker }) => marker === 'committed')) return 'compensated after a commit'
  // What is neither prepared nor on its way can commit no more.
  const open = participants.some(
    ({ gid, marker }) => gid === 'prepared' || (gid === 'preparing' && marker !== 'aborted'),
  )
  if (open) return 'compensated before the rollback was proved'
  if (actors.some(({ at, lease }) => lease && (at === 'ready' || at === 'effects')))
    return 'compensated while a live run may be in its effects'
  return undefined
}

function broken(state: State): string | undefined {
  const { row, participants } = state
  if (!state.handUsed && isSplit(state)) return 'one participant committed and another did not'
  if (row === null || !isEnded(row)) return undefined
  if (participants.some(({ gid }) => gid === 'prepared')) return 'ended with something prepared'
  const commits = participants.filter(({ marker }) => marker === 'committed').length
  if (commits !== (row.status === 'committed' ? participants.length : 0))
    return 'ended otherwise than it says'
  return undefined
}

function isSplit({ participants }: State): boolean {
  return (
    participants.some(({ marker }) => marker === 'committed') &&
    participants.some(
      ({ gid, marker }) =>
        marker !== 'committed' && (marker === 'aborted' || gid === 'gone' || gid === 'failed'),
    )
  )
}

function unfinished(state: State, { compensator: compensates }: Setting): string | undefined {
  const { row, participants, actors, compensator } = state
  const running = actors.some(({ at }) => at !== 'idle' && at !== 'over' && at !== 'dead')
  if (running || compensator.at !== 'idle' || participants.some(({ gid }) => gid === 'preparing'))
    return stillAtWork
  if (row === null) return 'nothing happened'
  if (isSplit(state) && !row.quarantined) return 'a split that nobody was told of'
  if (row.quarantined) {
    const left = row.decision !== 'none' && participants.some(({ gid }) => gid === 'prepared')
    return left ? 'something is left prepared' : undefined
  }
  if (!isEnded(row)) return `it is left ${row.status}`
  if (!compensates) return undefined
  if (row.compensation === 'due') return 'a compensation is left due'
  if (row.decision === 'abort' && state.uncompensated) return 'effects that nobody compensates'
  return undefined
}
