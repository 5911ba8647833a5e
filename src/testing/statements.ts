/** What a query would send: its text with $1, $2, … and its values, before any conversion. */
export type Statement = { text: string; values: readonly unknown[] }

export type Rows = readonly object[]

/** Rows; or a function of the statement that returns them, or throws as the database would; or an error. */
export type Answer = Rows | Error | ((statement: Statement) => Rows | Promise<Rows>)

/** What every participant was asked, and what the test wants answered. */
export class Statements {
  readonly #recorded: (Statement & { participant: string; transaction: string | null })[] = []
  readonly #answers: { pattern: RegExp | string; answer: Answer; participant: string | undefined }[] = []

  register(pattern: RegExp | string, answer: Answer, participant?: string): void {
    this.#answers.push({ pattern, answer, participant })
  }

  of(participant: string, transaction?: string): Statement[] {
    return this.#recorded
      .filter((s) => s.participant === participant && (transaction ?? s.transaction) === s.transaction)
      .map(({ text, values }) => ({ text, values }))
  }

  /** Records a statement, with the name of its transaction if that has one; the newest answer that fits is given, without one no rows. */
  async answer(participant: string, transaction: string | null, statement: Statement): Promise<Rows> {
    this.#recorded.push({ ...statement, participant, transaction })
    const found = this.#answers.findLast(
      (a) => (a.participant ?? participant) === participant && matches(a.pattern, statement.text),
    )
    const answer = found?.answer ?? []
    if (answer instanceof Error) throw answer
    return typeof answer === 'function' ? answer(statement) : answer
  }
}

/** `search` starts at the beginning also with a pattern that is global. */
function matches(pattern: RegExp | string, text: string): boolean {
  return typeof pattern === 'string' ? text.includes(pattern) : text.search(pattern) !== -1
}
