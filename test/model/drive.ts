import {
  type Guards,
  idle,
  type ModelStep,
  move,
  type Setting,
  type State,
  setAt,
  withActor,
  withParticipant,
  withRow,
} from './state.ts'

/**
 * Whoever found a decision drives it on all participants, in parallel, and then ends the row. Progress on a participant:
 *
 *     t to do   a absent (42704)   r rolled back   s fenced   f finished   q contradiction seen   x and quarantined
 */
export type Driving = {
  name: string
  index: number
  direction: 'commit' | 'abort'
  endsWith: 'all-committed' | 'all-fenced' | 'clean-up'
  /** where the actor goes when there is nothing more to drive */
  leave: (state: State) => State
}

export function driveSteps(state: State, { guards, coarse }: Setting, driving: Driving): ModelStep[] {
  const progress = state.actors[driving.index]?.progress ?? ''
  if (!/[tarsq]/.test(progress)) return [endStep(state, guards, driving, progress)]
  const one = driving.direction === 'commit' ? commitOne : abortOne
  const open = coarse && /[arsq]/.test(progress) ? 'arsq' : 'tarsq'
  return [...progress].flatMap((char, on) => (open.includes(char) ? [one(state, guards, driving, on)] : []))
}

function commitOne(state: State, guards: Guards, driving: Driving, on: number): ModelStep {
  const { name, index } = driving
  const participant = state.participants[on]
  const at = `of p${on}`
  switch (state.actors[index]?.progress.charAt(on)) {
    case 't': {
      if (participant?.gid !== 'prepared') {
        const next = guards.askMarkerWhenAbsent ? 'a' : 'f'
        return { label: `${name}: COMMIT PREPARED ${at}: absent`, to: progressed(state, index, on, next) }
      }
      return {
        label: `${name}: COMMIT PREPARED ${at}`,
        to: progressed(committed(state, on), index, on, 'f'),
        breaks: state.row?.decision === 'commit' ? undefined : 'a commit without the decision',
      }
    }
    case 'a': {
      const next = participant?.marker === 'committed' ? 'f' : 'q'
      return {
        label: `${name}: reads the marker ${at}: ${participant?.marker}`,
        to: progressed(state, index, on, next),
      }
    }
    default:
      return quarantineStep(state, driving, on)
  }
}

function abortOne(state: State, guards: Guards, driving: Driving, on: number): ModelStep {
  const { name, index } = driving
  const participant = state.participants[on]
  const at = `of p${on}`
  switch (state.actors[index]?.progress.charAt(on)) {
    case 't': {
      const next = guards.fence ? 'r' : 'f'
      if (participant?.gid !== 'prepared')
        return { label: `${name}: ROLLBACK PREPARED ${at}: absent`, to: progressed(state, index, on, next) }
      return {
        label: `${name}: ROLLBACK PREPARED ${at}`,
        to: progressed(withParticipant(state, on, { gid: 'gone' }), index, on, next),
        breaks: state.row?.decision === 'abort' ? undefined : 'a rollback without the decision',
      }
    }
    case 'r': {
      // The fence waits for a prepared marker until its lock timeout, and then it is rolled back first.
      if (participant?.gid === 'prepared')
        return { label: `${name}: fence ${at}: 55P03`, to: progressed(state, index, on, 't') }
      const fenced =
        participant?.marker === 'none' ? withParticipant(state, on, { marker: 'aborted' }) : state
      return { label: `${name}: fence ${at}`, to: progressed(fenced, index, on, 's') }
    }
    case 's': {
      const next = participant?.marker === 'committed' ? 'q' : 'f'
      return {
        label: `${name}: reads the marker ${at}: ${participant?.marker}`,
        to: progressed(state, index, on, next),
      }
    }
    default:
      return quarantineStep(state, driving, on)
  }
}

function quarantineStep(state: State, { name, index }: Driving, on: number): ModelStep {
  return {
    label: `${name}: quarantines, for p${on}`,
    to: progressed(withRow(state, { quarantined: true }), index, on, 'x'),
  }
}

function endStep(state: State, guards: Guards, driving: Driving, progress: string): ModelStep {
  const { name, direction, endsWith, leave } = driving
  if (progress.includes('x')) return { label: `${name}: leaves it to an operator`, to: leave(state) }
  const keepsOwner = direction === 'abort' && guards.ownerUntilRunEnds
  const { outcome, to, breaks } = move(state, guards, endsWith, keepsOwner ? {} : { owner: null })
  return { label: `${name}: ${endsWith}: ${outcome}`, to: leave(to), breaks }
}

export function startDriving(state: State, index: number, at: 'commit' | 'abort'): State {
  const { ranEffects, lease } = state.actors[index] ?? idle
  return withActor(state, index, {
    ...idle,
    lease,
    ranEffects,
    at,
    progress: 't'.repeat(state.participants.length),
  })
}

export function committed(state: State, on: number): State {
  return withParticipant(state, on, { gid: 'gone', marker: 'committed' })
}

function progressed(state: State, index: number, on: number, char: string): State {
  return withActor(state, index, { progress: setAt(state.actors[index]?.progress ?? '', on, char) })
}
