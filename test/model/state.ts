import type { Status } from '../../src/db/distributed-transactions.ts'
import { type Event, moveFor } from '../../src/jobs/transitions.ts'
import type { judge } from '../../src/jobs/verdict.ts'

/**
 * One attempt at one name as PostgreSQL sees it, with everybody who may be at it. A step of an actor is one database
 * statement (or one thing that happens outside the databases); a crash or another actor's step may come between any two.
 */
export type State = {
  row: Row | null
  participants: readonly ParticipantState[]
  actors: readonly Actor[]
  compensator: Compensator
  /** the operator at psql has had their one go */
  handUsed: boolean
  /** effects may have landed that no compensation followed yet */
  uncompensated: boolean
}

export type ParticipantState = {
  /**
   * `preparing`: sent, and it arrives whatever became of its client. `failed` never was prepared, `gone` was and is
   * finished.
   */
  gid: 'none' | 'preparing' | 'prepared' | 'failed' | 'gone'
  /** part of the prepared transaction, so `committed` shows only once that is committed */
  marker: 'none' | 'committed' | 'aborted'
}

export type Row = RowFields & { readonly key: string }

type RowFields = {
  status: Status
  decision: 'none' | 'commit' | 'abort'
  /** the actor whose run it is */
  owner: number | null
  pastDeadline: boolean
  quarantined: boolean
  compensation: 'none' | 'due' | 'done'
}

/** `worker` begins the attempt, `heir` is the redelivered job, `cleaner` a recoverer for what is past its deadline. */
export type Role = 'worker' | 'heir' | 'recoverer' | 'cleaner'

type At = (typeof placesInOrder)[number]

export type Actor = ActorFields & { readonly keys: readonly [string, string] }

/** Where an actor stands. A string has one character for each participant. */
type ActorFields = {
  at: At
  /** of its run; lost for good, also while the run goes on (a zombie) */
  lease: boolean
  ranEffects: boolean
  /** what is done where, while it drives a decision (see drive.ts) */
  progress: string
  /** what a recoverer saw in its two listings: ? y n, then Y (in both) N (in neither) C (changing) */
  listed: string
  /** ? not read, - none, c committed, a aborted */
  markers: string
  read: RowAsRead | null
}

/** What a recoverer read in the row. */
export type RowAsRead = {
  status: Status
  running: boolean
  pastDeadline: boolean
  owner: number | null
  /** somebody had committed by hand before: not read from the row, but what the markers would have told */
  committedByHand: boolean
}

type Compensator = {
  at: 'idle' | 'running' | 'ran'
  /** compensation was made due again since it read the row */
  outdated: boolean
}

/** The protocol's safeguards; each can be taken out to see what it is for. */
export type Guards = {
  /** an abort writes the `aborted` marker in every participant */
  fence: boolean
  /** recovery reads the markers before it judges */
  recheckMarkers: boolean
  /** commit is decided before any COMMIT PREPARED */
  decisionBeforeCommit: boolean
  /** the row is `pending` before effects start */
  pendingBeforeEffects: boolean
  /** recovery trusts only what two listings show */
  listTwice: boolean
  /** the status moves only from where the transition table says */
  casOnStatus: boolean
  /** the table's trigger and check constraints: a decision is written once, and the status agrees with it */
  decisionOnce: boolean
  /** recovery moves the row only from the status that it judged */
  casOnJudged: boolean
  /** recovery moves the row only while it has the owner that was judged */
  casOnOwner: boolean
  /** a run moves the row only while it is its own */
  stepsOfTheOwner: boolean
  /** 42704 is a question, answered by the marker */
  askMarkerWhenAbsent: boolean
  /** a run is taken over only when its lease is lost */
  leaseBeforeTakeOver: boolean
  /** only the run itself leaves the row; recovery lets its owner stand */
  ownerUntilRunEnds: boolean
  /** also a run that came to no effects leaves the row when it ends */
  everyRunEnds: boolean
  /** a run that ends leaves the row to the other run that took it over */
  endsOnlyItself: boolean
  /** compensation waits for the status that stands for a proved rollback */
  compensateAfterProof: boolean
  /** compensation waits for the run's end, or for the loss of its lease */
  compensateAfterRun: boolean
  /** effects that come back to an aborted attempt make compensation due again */
  dueAgain: boolean
  /** also where the attempt is another run's by then */
  dueAgainByAnyRun: boolean
  /** a compensation that ran before it was made due again does not count as done */
  doneOnlyIfStillSame: boolean
}

export const allGuards: Guards = {
  fence: true,
  recheckMarkers: true,
  decisionBeforeCommit: true,
  pendingBeforeEffects: true,
  listTwice: true,
  casOnStatus: true,
  decisionOnce: true,
  casOnJudged: true,
  casOnOwner: true,
  stepsOfTheOwner: true,
  askMarkerWhenAbsent: true,
  leaseBeforeTakeOver: true,
  ownerUntilRunEnds: true,
  everyRunEnds: true,
  endsOnlyItself: true,
  compensateAfterProof: true,
  compensateAfterRun: true,
  dueAgain: true,
  dueAgainByAnyRun: true,
  doneOnlyIfStillSame: true,
}

export type Setting = {
  participants: 1 | 2
  cast: readonly Role[]
  compensator: boolean
  /** somebody at psql finishes one gid, once */
  hand: boolean
  /**
   * For larger casts: one step lists everywhere or reads the markers everywhere, and an actor finishes with one
   * participant before it turns to the next.
   */
  coarse: boolean
  guards: Guards
  judge: typeof judge
}

export type ModelStep = { label: string; to: State; breaks?: string | undefined }

export function initialState({ participants, cast }: Setting): State {
  return {
    row: null,
    participants: Array.from({ length: participants }, () => ({ gid: 'none', marker: 'none' }) as const),
    actors: cast.map((role) => actorOf({ ...idle, lease: role === 'worker' || role === 'heir' })),
    compensator: { at: 'idle', outdated: false },
    handUsed: false,
    uncompensated: false,
  }
}

/** An actor that remembers nothing. */
export const idle: ActorFields = {
  at: 'idle',
  lease: false,
  ranEffects: false,
  progress: '',
  listed: '',
  markers: '',
  read: null,
}

export function withActor(state: State, index: number, change: Partial<ActorFields>): State {
  const actor = state.actors[index]
  return actor ? { ...state, actors: state.actors.with(index, actorOf({ ...actor, ...change })) } : state
}

export function withRow(state: State, change: Partial<RowFields>): State {
  return state.row === null ? state : { ...state, row: rowOf({ ...state.row, ...change }) }
}

export function withParticipant(state: State, index: number, change: Partial<ParticipantState>): State {
  const participant = state.participants[index]
  if (!participant) return state
  return { ...state, participants: state.participants.with(index, { ...participant, ...change }) }
}

export function setAt(text: string, index: number, char: string): string {
  return text.slice(0, index) + char + text.slice(index + 1)
}

export function isEnded(row: Row): boolean {
  return row.status === 'committed' || row.status === 'rolled_back' || row.status === 'cleaned_up'
}

export function leaseLives(state: State, owner: number | null): boolean {
  return owner !== null && state.actors[owner]?.lease === true
}

const events = [
  'all-prepared',
  'decide-commit',
  'all-committed',
  'decide-abort',
  'all-fenced',
  'clean-up',
] as const
const moves = Object.fromEntries(events.map((event) => [event, moveFor(event)])) as Record<
  Event,
  ReturnType<typeof moveFor>
>

/** `lost`: the compare-and-set matched nothing. `refused`: the table raised an error. */
export type Move = { outcome: 'done' | 'lost' | 'refused'; to: State; breaks?: string | undefined }

/** The compare-and-set of the status with what is written along with it, as the product's transition table has it. */
export function move(
  state: State,
  guards: Guards,
  event: Event,
  also: Partial<RowFields> = {},
  mayFrom: (row: Row) => boolean = () => true,
): Move {
  const { row } = state
  const { from, to: status } = moves[event]
  if (row === null || !mayFrom(row) || (guards.casOnStatus && !from.includes(row.status)))
    return { outcome: 'lost', to: state }
  const decision = event === 'decide-commit' ? 'commit' : event === 'decide-abort' ? 'abort' : row.decision
  const reversed = row.decision !== 'none' && decision !== row.decision
  const decidedStatus = status !== 'started' && status !== 'pending'
  if (guards.decisionOnce && (reversed || decidedStatus !== (decision !== 'none')))
    return { outcome: 'refused', to: state }
  const due = event === 'decide-abort' && row.status === 'pending'
  const to = withRow(state, { status, decision, ...(due ? { compensation: 'due' } : {}), ...also })
  return { outcome: 'done', to, breaks: brokenByMove(state, row, event, reversed) }
}

function brokenByMove(state: State, row: Row, event: Event, reversed: boolean): string | undefined {
  if (reversed) return 'a decision was reversed'
  if (isEnded(row)) return 'an ended attempt was moved'
  const neverPrepared = state.participants.some(({ gid }) => gid !== 'prepared' && gid !== 'gone')
  if (event === 'decide-commit' && neverPrepared) return 'commit was decided before all had prepared'
  return undefined
}

const placesInOrder = [
  'idle',
  // a run
  'inserted',
  'staging',
  'ready',
  'effects',
  'record-late',
  'decide-commit',
  'decide-abort',
  'look',
  'release',
  'over',
  'dead',
  // whoever drives a decision
  'commit',
  'abort',
  // a recoverer
  'list',
  'list-again',
  'markers',
  'recover-commit',
  'recover-abort',
  'quarantine',
  'look-again',
  'strays',
] as const

function letters<Word extends string>(words: readonly Word[]): Record<Word, string> {
  return Object.fromEntries(words.map((word, i) => [word, String.fromCodePoint(65 + i)])) as Record<
    Word,
    string
  >
}

const placeLetters = letters(placesInOrder)
const gidLetters = letters(['none', 'preparing', 'prepared', 'failed', 'gone'])
const markerLetters = letters(['none', 'committed', 'aborted'])
const statusLetters = letters([
  'started',
  'pending',
  'committing',
  'committed',
  'rolling_back',
  'rolled_back',
  'cleaned_up',
])
const flag = (value: boolean) => (value ? '1' : '0')

/**
 * States that differ only in which participant or which recoverer is which behave alike: they have one key.
 */
export function keyOf(state: State, cast: readonly Role[]): string {
  const first = keyInOrder(state, cast, 0)
  if (state.participants.length === 1) return first
  const second = keyInOrder(state, cast, 1)
  return first < second ? first : second
}

type Order = 0 | 1

function keyInOrder(state: State, cast: readonly Role[], order: Order): string {
  const { row, participants, actors, compensator } = state
  let key = row === null ? '-' : row.key
  for (let i = 0; i < participants.length; i++) {
    const participant = participants[order === 0 ? i : 1 - i]
    if (participant) key += gidLetters[participant.gid] + markerLetters[participant.marker]
  }
  key += compensator.at + flag(compensator.outdated) + flag(state.handUsed) + flag(state.uncompensated)
  let recoverer = ''
  for (let i = 0; i < cast.length; i++) {
    const own = actors[i]?.keys[order] ?? ''
    if (cast[i] !== 'recoverer') key += own
    else recoverer = recoverer < own ? recoverer + own : own + recoverer
  }
  return key + recoverer
}

const knownRows = new Map<string, Row>()
const knownActors = new Map<string, Actor>()
const characters = new Map<string, string>()

/** There are few rows and few actors in many states: each is kept once, and one character stands for it in keys. */
export function rowOf(fields: RowFields): Row {
  const { status, decision, owner, pastDeadline, quarantined, compensation } = fields
  const text =
    statusLetters[status] +
    decision.charAt(0) +
    (owner ?? '-') +
    flag(pastDeadline) +
    flag(quarantined) +
    compensation
  let row = knownRows.get(text)
  if (row === undefined) {
    row = { ...fields, key: characterFor(text) }
    knownRows.set(text, row)
  }
  return row
}

function actorOf(fields: ActorFields): Actor {
  const text = actorText(fields, 0)
  let actor = knownActors.get(text)
  if (actor === undefined) {
    actor = { ...fields, keys: [characterFor(text), characterFor(actorText(fields, 1))] }
    knownActors.set(text, actor)
  }
  return actor
}

function characterFor(text: string): string {
  // Below the surrogates one character is one code unit, so keys stay unambiguous.
  if (characters.size > 50_000) throw new Error('more kinds of rows and actors than there are characters')
  const character = characters.get(text) ?? String.fromCodePoint(256 + characters.size)
  characters.set(text, character)
  return character
}

function actorText(
  { at, lease, ranEffects, progress, listed, markers, read }: ActorFields,
  order: Order,
): string {
  const inOrder = (text: string) =>
    order === 1 && text.length === 2 ? text.charAt(1) + text.charAt(0) : text
  const seen =
    read === null
      ? ''
      : statusLetters[read.status] +
        flag(read.running) +
        flag(read.pastDeadline) +
        (read.owner ?? '-') +
        flag(read.committedByHand)
  const own = placeLetters[at] + flag(lease) + flag(ranEffects)
  return `/${own}${inOrder(progress)}.${inOrder(listed)}${inOrder(markers)}${seen}`
}
