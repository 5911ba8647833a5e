export type BenchServers = { postgres: string; redis: string }

/**
 * One row of the budget table: what we do, what it is held against, and the least ratio that is good enough. A higher ratio
 * is always better, also where less of the unit is (milliseconds, megabytes). Bar 0: for information.
 */
export type Measurement = {
  name: string
  unit: string
  ours: number
  limit: number
  ratio: number
  bar: number
}

export type Bench = (servers: BenchServers, quick: boolean) => Promise<Measurement[]>

/**
 * Runs both sides in turn, `rounds` times, and takes the medians; the ratio is the median of the rounds' ratios, so
 * that a slow moment of the machine hits both sides of it. A round returns its rate per second.
 */
export async function compare(
  what: { name: string; unit: string; bar: number; rounds: number },
  ours: (round: number) => Promise<number>,
  limit: (round: number) => Promise<number>,
): Promise<Measurement> {
  await ours(-1)
  await limit(-1)
  const rates: { ours: number; limit: number }[] = []
  for (let round = 0; round < what.rounds; round++) {
    // Who goes first changes from round to round.
    if (round % 2 === 0) {
      const first = await ours(round)
      rates.push({ ours: first, limit: await limit(round) })
    } else {
      const first = await limit(round)
      rates.push({ ours: await ours(round), limit: first })
    }
  }
  return {
    name: what.name,
    unit: what.unit,
    ours: Math.round(median(rates.map((r) => r.ours))),
    limit: Math.round(median(rates.map((r) => r.limit))),
    ratio: hundredths(median(rates.map((r) => r.ours / r.limit))),
    bar: what.bar,
  }
}

/** Of what should be small: how often it fits into what it may be. */
export function atMost(what: {
  name: string
  unit: string
  ours: number
  limit: number
  bar: number
}): Measurement {
  const { ours, limit } = what
  return { ...what, ours: hundredths(ours), limit: hundredths(limit), ratio: hundredths(limit / ours) }
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = Math.floor(sorted.length / 2)
  const upper = sorted[middle] ?? Number.NaN
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2
}

/** The value that `share` of the values do not exceed, by nearest rank. */
export function percentile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? Number.NaN
}

function hundredths(value: number): number {
  return Math.round(value * 100) / 100
}

/** Repeats `once` on every connection for a while; returns how many ended per second. */
export async function ratePerSecond(
  connections: number,
  seconds: number,
  once: (connection: number) => Promise<void>,
): Promise<number> {
  const started = performance.now()
  let done = 0
  await Promise.all(
    Array.from({ length: connections }, async (_, connection) => {
      while (performance.now() - started < seconds * 1_000) {
        await once(connection)
        done++
      }
    }),
  )
  return done / ((performance.now() - started) / 1_000)
}
