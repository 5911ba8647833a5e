import { quoteIdentifier, quoteLiteral } from './quote.ts'

/** A column of a key, as the database compares it. */
export type KeyColumn = {
  name: string
  /** SQL names; the collation of every type that has one */
  type: string
  collation: string | null
  /** where null goes in the order; undefined: the column is never null */
  nulls: 'first' | 'last' | undefined
}

/** The values of a key as text, in the order of its columns. Text loses nothing of any type on the way. */
export type KeyValues = readonly (string | null)[]

/** After `after` (null: from the beginning), up to and including `until` (null: open). */
export type Range = { after: KeyValues | null; until: KeyValues | null }

/** The parameters of one statement, each numbered when it is first used: the database refuses one that is not used. */
export class Parameters {
  readonly values: string[] = []

  add(value: string): string {
    return `$${this.values.push(value)}`
  }
}

/** None: the values stand in the statement itself, which is then sent without asking the database first what it is like. */
export class Literals extends Parameters {
  override add(value: string): string {
    return quoteLiteral(value)
  }
}

/** Written out where it matters alone: an index may have the other order, and an order by what is never null has none. */
export function orderOf(columns: readonly KeyColumn[]): string {
  return columns
    .map(({ name, nulls }) => `${quoteIdentifier(name)}${nulls === undefined ? '' : ` nulls ${nulls}`}`)
    .join(', ')
}

/**
 * Conditions that divide a range: each row of it satisfies exactly one, and all rows of one come before those of the next.
 *
 * A key without nulls is one comparison of rows, from which an index takes both ends. With nulls no single comparison says
 * what the order says, and one that is put together with `or` takes the index away from the order. So the range is
 * divided by the leading columns that are the same: `a = 1 and b > 5`, then `a = 1 and b is null`, then `a > 1`; each
 * is one interval of an index on the key.
 */
export function divide(columns: readonly KeyColumn[], range: Range, parameters: Parameters): string[] {
  const { after, until } = range
  const low = after && columns.map((column, i) => new Bound(column, after[i] ?? null, parameters))
  const high = until && columns.map((column, i) => new Bound(column, until[i] ?? null, parameters))
  if (columns.every(({ nulls }) => nulls === undefined)) {
    const ends = [low && compareRows(low, '>'), high && compareRows(high, '<=')]
    return [all(ends.filter((end) => end !== null))]
  }
  if (low && high) return between(low, high)
  if (low) return beyond(low, 0)
  if (high) return upTo(high, 0)
  return ['true']
}

/** Of the row with exactly this key. */
export function isAt(columns: readonly KeyColumn[], values: KeyValues, parameters: Parameters): string {
  return all(columns.map((column, i) => new Bound(column, values[i] ?? null, parameters).equal))
}

/** Descending into the columns from the last: what shares most with the lower end comes first. */
function beyond(low: readonly Bound[], from: number): string[] {
  const branches: string[] = []
  for (let i = low.length - 1; i >= from; i--) {
    for (const side of low[i]?.beyond() ?? []) branches.push(all([...same(low, i), side.text()]))
  }
  return branches
}

function upTo(high: readonly Bound[], from: number): string[] {
  const branches: string[] = []
  for (let i = from; i < high.length; i++) {
    const sides = i === high.length - 1 ? high[i]?.upTo() : high[i]?.before()
    for (const side of sides ?? []) branches.push(all([...same(high, i), side.text()]))
  }
  return branches
}

/**
 * The first column whose values differ divides: at its lower value, between both, at its upper value. Values that differ
 * as text may be equal to the database (1.0 and 1.00, or by a collation). Then there is nothing between them, everything
 * is at the lower value, and what is at the upper value must not come again.
 */
function between(low: readonly Bound[], high: readonly Bound[]): string[] {
  const at = low.findIndex(({ value }, i) => value !== high[i]?.value)
  const [lower, upper] = [low[at], high[at]]
  if (!lower || !upper) return ['false']
  const isLast = at === low.length - 1
  // Neither may take part in the choice of an index.
  const withinHigh = () => `coalesce(${any(upTo(high, 0))}, false)`
  const beyondLow = () => `coalesce(${any(lower.beyond().map((side) => side.text()))}, false)`
  const middle = lower
    .beyond()
    .flatMap((one) =>
      (isLast ? upper.upTo() : upper.before())
        .filter((other) => one.isNull === other.isNull)
        .map((other) => all([...same(low, at), one.text(), other.text()])),
    )
  return [
    ...beyond(low, at + 1).map((branch) => all([branch, withinHigh()])),
    ...middle,
    ...(isLast ? [] : upTo(high, at + 1).map((branch) => all([branch, beyondLow()]))),
  ]
}

/** A part of the order on one side of a value. Its text uses parameters, so it is made only where it is needed. */
type Side = { text: () => string; isNull: boolean }

/** One column against one value of it. */
class Bound {
  readonly name: string
  readonly value: string | null
  readonly #column: KeyColumn
  readonly #parameters: Parameters
  #sql: string | undefined

  constructor(column: KeyColumn, value: string | null, parameters: Parameters) {
    this.value = value
    this.#column = column
    this.name = quoteIdentifier(column.name)
    this.#parameters = parameters
  }

  /** The value, compared as the column is ordered: a domain's own collation may be another. */
  get sql(): string {
    const { type, collation } = this.#column
    this.#sql ??= `${this.#parameters.add(this.value ?? '')}::text::${type}${collation === null ? '' : ` collate ${collation}`}`
    return this.#sql
  }

  get equal(): string {
    return this.value === null ? `${this.name} is null` : `${this.name} = ${this.sql}`
  }

  beyond(): Side[] {
    const { nulls } = this.#column
    if (this.value === null) return nulls === 'first' ? [this.#notNull] : []
    return nulls === 'last' ? [this.#compare('>'), this.#null] : [this.#compare('>')]
  }

  before(): Side[] {
    const { nulls } = this.#column
    if (this.value === null) return nulls === 'first' ? [] : [this.#notNull]
    return nulls === 'first' ? [this.#null, this.#compare('<')] : [this.#compare('<')]
  }

  upTo(): Side[] {
    if (this.value === null) return [...this.before(), this.#null]
    return this.#column.nulls === 'first' ? [this.#null, this.#compare('<=')] : [this.#compare('<=')]
  }

  #compare(operator: '>' | '<' | '<='): Side {
    return { text: () => `${this.name} ${operator} ${this.sql}`, isNull: false }
  }

  get #null(): Side {
    return { text: () => `${this.name} is null`, isNull: true }
  }

  get #notNull(): Side {
    return { text: () => `${this.name} is not null`, isNull: false }
  }
}

function compareRows(bounds: readonly Bound[], operator: '>' | '<='): string {
  const row = (parts: readonly string[]) => `(${parts.join(', ')})`
  return `${row(bounds.map(({ name }) => name))} ${operator} ${row(bounds.map(({ sql }) => sql))}`
}

function same(bounds: readonly Bound[], columns: number): string[] {
  return bounds.slice(0, columns).map(({ equal }) => equal)
}

export function all(conditions: readonly string[]): string {
  return conditions.length === 0 ? 'true' : conditions.join(' and ')
}

export function any(conditions: readonly string[]): string {
  return conditions.length === 0 ? 'false' : `(${conditions.map((c) => `(${c})`).join(' or ')})`
}
