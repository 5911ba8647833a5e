import type { ParticipantFacts } from '../../src/jobs/verdict.ts'
import { committed, driveSteps, startDriving } from './drive.ts'
import {
  type Actor,
  idle,
  isEnded,
  leaseLives,
  type ModelStep,
  move,
  type Row,
  type RowAsRead,
  type Setting,
  type State,
  setAt,
  withActor,
  withParticipant,
  withRow,
} from './state.ts'

/**
 * A recoverer goes round and round: list gids, read the row, list again, read markers, judge, compare-and-set, drive.
 * After a crash it starts a new round. The cleaner is one that looks only at what is past its deadline.
 */
export function recovererSteps(state: State, setting: Setting, index: number): ModelStep[] {
  const actor = state.actors[index]
  if (!actor) return []
  const name = `${setting.cast[index]} ${index}`
  if (actor.at === 'idle') {
    const listed = '?'.repeat(state.participants.length)
    return hasWork(state, setting, index)
      ? listSteps(withActor(state, index, { at: 'list', listed }), setting, index, name)
      : []
  }
  const steps = actions(state, setting, index, actor, name)
  steps.push({ label: `${name}: crashes`, to: toIdle(state, index) })
  return steps
}

/** A round that would find nothing to do only reads, so it is left out. */
function hasWork({ row, participants }: State, { cast }: Setting, index: number): boolean {
  if (row === null || (cast[index] === 'cleaner' && !row.pastDeadline)) return false
  if (!isEnded(row) && !row.quarantined) return true
  return row.decision !== 'none' && participants.some(({ gid }) => gid === 'prepared')
}

function actions(state: State, setting: Setting, index: number, actor: Actor, name: string): ModelStep[] {
  switch (actor.at) {
    case 'list':
      return actor.listed.includes('?')
        ? listSteps(state, setting, index, name)
        : [
            {
              label: `${name}: reads the row: ${state.row?.status}`,
              to: readRow(state, setting, index, actor),
            },
          ]
    case 'list-again':
      return listSteps(state, setting, index, name)
    case 'markers':
      return markerSteps(state, setting, index, actor, name)
    case 'recover-commit':
    case 'recover-abort':
      return [decide(state, setting, index, actor, name)]
    case 'quarantine':
      return [{ label: `${name}: quarantines`, to: toIdle(withRow(state, { quarantined: true }), index) }]
    case 'look-again':
      return [{ label: `${name}: reads the row again: ${state.row?.status}`, to: lookAgain(state, index) }]
    case 'strays':
      return straySteps(state, index, actor, name)
    case 'commit':
    case 'abort':
      return driveSteps(state, setting, {
        name,
        index,
        direction: actor.at,
        endsWith: endOf(actor.at, setting, index),
        leave: (after) => toIdle(after, index),
      })
    default:
      return []
  }
}

function endOf(direction: 'commit' | 'abort', { cast }: Setting, index: number) {
  if (direction === 'commit') return 'all-committed'
  return cast[index] === 'cleaner' ? 'clean-up' : 'all-fenced'
}

/** Either listing; each participant is asked on its own, so others come between. */
function listSteps(state: State, setting: Setting, index: number, name: string): ModelStep[] {
  const { listed } = state.actors[index] ?? idle
  const open = listed.includes('?') ? '?' : 'yn'
  const next = [...listed].flatMap((char, on) => (open.includes(char) ? [on] : []))
  const together = setting.coarse ? [next] : next.map((on) => [on])
  return together.map((group) => {
    const seen = group.reduce((text, on) => setAt(text, on, listing(state, text.charAt(on), on)), listed)
    const to = afterListing(withActor(state, index, { listed: seen }), setting, index)
    return { label: `${name}: lists ${group.map((on) => `p${on}`).join()}: ${seen}`, to }
  })
}

function listing({ participants }: State, before: string, on: number): string {
  const isListed = participants[on]?.gid === 'prepared'
  if (before === '?') return isListed ? 'y' : 'n'
  if (before === 'y') return isListed ? 'Y' : 'C'
  return isListed ? 'C' : 'N'
}

function afterListing(state: State, setting: Setting, index: number): State {
  const actor = state.actors[index] ?? idle
  if (/[?yn]/.test(actor.listed)) return state
  if (actor.read?.status !== 'started' && actor.read?.status !== 'pending') {
    const progress = actor.listed.replaceAll('Y', 't').replaceAll(/[NC]/g, 'f')
    return progress.includes('t')
      ? withActor(state, index, { ...idle, at: 'strays', progress })
      : toIdle(state, index)
  }
  if (setting.guards.recheckMarkers)
    return withActor(state, index, { at: 'markers', markers: '?'.repeat(state.participants.length) })
  return judged(withActor(state, index, { markers: '-'.repeat(state.participants.length) }), setting, index)
}

function readRow(state: State, setting: Setting, index: number, actor: Actor): State {
  const { row } = state
  if (row === null) return toIdle(state, index)
  const read: RowAsRead = {
    status: row.status,
    running: leaseLives(state, row.owner),
    pastDeadline: row.pastDeadline,
    owner: row.owner,
    committedByHand:
      row.decision === 'none' && state.participants.some(({ marker }) => marker === 'committed'),
  }
  if (isEnded(row) || row.quarantined) {
    if (row.decision === 'none' || !actor.listed.includes('y')) return toIdle(state, index)
    return withActor(state, index, {
      at: 'list-again',
      read: { ...read, running: false, pastDeadline: false },
    })
  }
  if (setting.judge({ ...read, participants: undefined }).act === 'drive') return lookAgain(state, index)
  if (!mayAct(setting, read)) return toIdle(state, index)
  const next = withActor(state, index, { at: 'list-again', read })
  if (setting.guards.listTwice) return next
  const listed = actor.listed.replaceAll('y', 'Y').replaceAll('n', 'N')
  return afterListing(withActor(next, index, { listed }), setting, index)
}

const gidFacts = { Y: 'listed', N: 'absent', C: 'changing' } as const
const markerFacts = { '-': undefined, c: 'committed', a: 'aborted' } as const

function factsOf(listed: string, markers: string): ParticipantFacts[] {
  return [...listed].map((char, on) => ({
    name: `p${on}`,
    gid: gidFacts[char as keyof typeof gidFacts],
    marker: markerFacts[markers.charAt(on) as keyof typeof markerFacts],
  }))
}

const answers = new WeakMap<Setting, Map<string, boolean>>()

/** False where the rest of the round would lead to nothing, whatever it saw: it only reads, so it is left out. */
function mayAct(setting: Setting, { status, running, pastDeadline }: RowAsRead): boolean {
  const known = answers.get(setting) ?? new Map<string, boolean>()
  answers.set(setting, known)
  const question = `${status} ${running} ${pastDeadline}`
  const answer =
    known.get(question) ??
    allSeen(setting.participants).some(([listed, markers]) => {
      const facts = { status, running, pastDeadline, participants: factsOf(listed, markers) }
      return setting.judge(facts).act !== 'leave'
    })
  known.set(question, answer)
  return answer
}

/** All that two listings and the markers can show. */
function allSeen(participants: number): [listed: string, markers: string][] {
  if (participants === 0) return [['', '']]
  const rest = allSeen(participants - 1)
  return [...'YNC'].flatMap((gid) =>
    [...'-ca'].flatMap((marker) =>
      rest.map(([listed, markers]): [string, string] => [gid + listed, marker + markers]),
    ),
  )
}

function markerSteps(
  state: State,
  setting: Setting,
  index: number,
  { markers }: Actor,
  name: string,
): ModelStep[] {
  const next = [...markers].flatMap((char, on) => (char === '?' ? [on] : []))
  const together = setting.coarse ? [next] : next.map((on) => [on])
  return together.map((group) => {
    const seen = group.reduce((text, on) => setAt(text, on, markerOn(state, on)), markers)
    const to = withActor(state, index, { markers: seen })
    const label = `${name}: reads the markers of ${group.map((on) => `p${on}`).join()}: ${seen}`
    return { label, to: seen.includes('?') ? to : judged(to, setting, index) }
  })
}

function markerOn({ participants }: State, on: number): string {
  const marker = participants[on]?.marker ?? 'none'
  return marker === 'none' ? '-' : marker.charAt(0)
}

function judged(state: State, setting: Setting, index: number): State {
  const { listed, markers, read } = state.actors[index] ?? idle
  if (read === null) return toIdle(state, index)
  const { status, running, pastDeadline } = read
  const { act } = setting.judge({ status, running, pastDeadline, participants: factsOf(listed, markers) })
  // What it was judged by is not needed any more.
  const rest = { ...idle, read: { ...read, running: false, pastDeadline: false } }
  if (act === 'commit') return withActor(state, index, { ...rest, at: 'recover-commit' })
  if (act === 'abort') return withActor(state, index, { ...rest, at: 'recover-abort' })
  if (act === 'quarantine') return withActor(state, index, { ...idle, at: 'quarantine' })
  return toIdle(state, index)
}

function decide(state: State, { guards }: Setting, index: number, actor: Actor, name: string): ModelStep {
  const commits = actor.at === 'recover-commit'
  const event = commits ? 'decide-commit' : 'decide-abort'
  const { read } = actor
  const asJudged = (row: Row) =>
    (!guards.casOnJudged || row.status === read?.status) && (!guards.casOnOwner || row.owner === read?.owner)
  const { outcome, to, breaks } = move(state, guards, event, {}, asJudged)
  const label = `${name}: ${event}: ${outcome}`
  switch (outcome) {
    case 'done':
      return {
        label,
        to: startDriving(to, index, commits ? 'commit' : 'abort'),
        breaks: breaks ?? (commits ? undefined : brokenByAbort(state, read)),
      }
    case 'lost':
      return { label, to: withActor(to, index, { ...idle, at: 'look-again' }) }
    default:
      return { label, to: toIdle(to, index) }
  }
}

/** Recovery may abort what is past its deadline, what was never pending and has no live run, and what is gone. */
function brokenByAbort(state: State, read: RowAsRead | null): string | undefined {
  const { row, participants } = state
  if (row === null) return undefined
  if (read?.committedByHand) return 'an abort was decided against a commit by hand'
  if (row.pastDeadline) return undefined
  const intact = row.status === 'pending' && participants.every(({ gid }) => gid === 'prepared')
  // Whoever took over what is still `started` was about to abort it itself.
  const disturbs = row.status === 'pending' || row.owner === read?.owner
  if (disturbs && leaseLives(state, row.owner)) return 'a live run was aborted before its deadline'
  return intact ? 'an intact attempt was aborted before its deadline' : undefined
}

function lookAgain(state: State, index: number): State {
  if (state.row?.status === 'committing') return startDriving(state, index, 'commit')
  if (state.row?.status === 'rolling_back') return startDriving(state, index, 'abort')
  return toIdle(state, index)
}

/** Gids of a decided attempt that is not driven any more (it is quarantined) follow the decision. */
function straySteps(state: State, index: number, { progress }: Actor, name: string): ModelStep[] {
  return [...progress].flatMap((char, on) => {
    if (char !== 't') return []
    const next = setAt(progress, on, 'f')
    const commits = state.row?.decision === 'commit'
    const after = next.includes('t') ? withActor(state, index, { progress: next }) : toIdle(state, index)
    const label = `${name}: ${commits ? 'COMMIT' : 'ROLLBACK'} PREPARED of the stray p${on}`
    if (state.participants[on]?.gid !== 'prepared') return [{ label: `${label}: absent`, to: after }]
    return [{ label, to: commits ? committed(after, on) : withParticipant(after, on, { gid: 'gone' }) }]
  })
}

function toIdle(state: State, index: number): State {
  return withActor(state, index, idle)
}
