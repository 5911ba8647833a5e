/**
 * Explores every state that a model can reach, breadth first, so that the trace to the first broken rule is a shortest
 * one. States are told apart by their keys alone. When no rule is broken it also asks whether every state can still
 * reach an end: a state that cannot is stuck, whatever anybody does.
 */
type Step<State> = {
  label: string
  to: State
  /** the rule that taking this step breaks */
  breaks?: string | undefined
}

export type Model<State> = {
  initial: State
  steps(state: State): Step<State>[]
  /** equal for states that behave alike */
  key(state: State): string
  /** the rule that a state breaks */
  broken(state: State): string | undefined
  /** what is still missing before everything has ended as it should; undefined at an end */
  unfinished(state: State): string | undefined
}

export type Exploration = {
  states: number
  steps: number
  violation: { rule: string; trace: string[] } | undefined
}

export function explore<State>(model: Model<State>, maxStates: number): Exploration {
  const ids = new Map<string, number>()
  const parents = new Numbers()
  /** which of its parent's steps led there first */
  const choices = new Numbers()
  const from = new Numbers()
  const to = new Numbers()
  const missing: (string | undefined)[] = []

  /** The id of a state, and whether it is new. */
  const visit = (state: State, parent: number, choice: number): [id: number, isNew: boolean] => {
    const key = model.key(state)
    const known = ids.get(key)
    if (known !== undefined) return [known, false]
    const id = ids.size
    if (id >= maxStates) throw new Error(`more than ${maxStates} states`)
    ids.set(key, id)
    parents.push(parent)
    choices.push(choice)
    missing.push(model.unfinished(state))
    return [id, true]
  }
  // Labels are not kept: the way to a state is walked again.
  const traceTo = (id: number): string[] => {
    const way: number[] = []
    for (let at = id; at > 0; at = parents.at(at)) way.unshift(choices.at(at))
    let state = model.initial
    return way.map((choice) => {
      const step = model.steps(state)[choice]
      if (!step) throw new Error('the model does not repeat itself')
      state = step.to
      return step.label
    })
  }
  const found = (rule: string, trace: string[]): Exploration => {
    return { states: ids.size, steps: from.length, violation: { rule, trace } }
  }

  visit(model.initial, -1, -1)
  let level: [number, State][] = [[0, model.initial]]
  while (level.length > 0) {
    const next: [number, State][] = []
    for (const [id, state] of level) {
      for (const [choice, step] of model.steps(state).entries()) {
        if (step.breaks !== undefined) return found(step.breaks, [...traceTo(id), step.label])
        const [target, isNew] = visit(step.to, id, choice)
        from.push(id)
        to.push(target)
        if (!isNew) continue
        const rule = model.broken(step.to)
        if (rule !== undefined) return found(rule, traceTo(target))
        next.push([target, step.to])
      }
    }
    level = next
  }

  const canEnd = reaching(ids.size, from, to, (id) => missing[id] === undefined)
  const stuck = [...missing.keys()].filter((id) => canEnd[id] === 0)
  if (stuck.length === 0) return { states: ids.size, steps: from.length, violation: undefined }
  // Where everybody has stopped, what is missing is the fault itself and not just more time.
  const worst = stuck.find((id) => missing[id] !== stillAtWork) ?? stuck[0] ?? 0
  return found(`stuck: ${missing[worst]}`, traceTo(worst))
}

/** What `unfinished` answers while somebody may still bring the end about. */
export const stillAtWork = 'still at work'

/** Marks the states from which one that is an end can be reached: the steps walked backwards. */
function reaching(
  states: number,
  from: Numbers,
  to: Numbers,
  isEnd: (id: number) => boolean,
): Uint8Array<ArrayBuffer> {
  const firstInto = new Int32Array(states + 1)
  for (let i = 0; i < to.length; i++) firstInto[to.at(i) + 1] = (firstInto[to.at(i) + 1] ?? 0) + 1
  for (let id = 0; id < states; id++) firstInto[id + 1] = (firstInto[id + 1] ?? 0) + (firstInto[id] ?? 0)
  const filled = firstInto.slice()
  const sources = new Int32Array(to.length)
  for (let i = 0; i < to.length; i++) {
    const slot = filled[to.at(i)] ?? 0
    sources[slot] = from.at(i)
    filled[to.at(i)] = slot + 1
  }
  const reached = new Uint8Array(states)
  const queue: number[] = []
  for (let id = 0; id < states; id++) {
    if (!isEnd(id)) continue
    reached[id] = 1
    queue.push(id)
  }
  for (let id = queue.pop(); id !== undefined; id = queue.pop()) {
    for (let i = firstInto[id] ?? 0; i < (firstInto[id + 1] ?? 0); i++) {
      const source = sources[i] ?? 0
      if (reached[source] === 1) continue
      reached[source] = 1
      queue.push(source)
    }
  }
  return reached
}

/** A growing list of 32-bit integers: there are millions of steps. */
class Numbers {
  #values = new Int32Array(1024)
  length = 0

  push(value: number): void {
    if (this.length === this.#values.length) {
      const larger = new Int32Array(2 * this.length)
      larger.set(this.#values)
      this.#values = larger
    }
    this.#values[this.length++] = value
  }

  at(index: number): number {
    return this.#values[index] ?? -1
  }
}
