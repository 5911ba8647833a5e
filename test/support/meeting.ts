import { deferred } from '../../src/db/deferred.ts'

/** A number of parties, each of whom waits here for all the others. */
export function meeting(parties: number): () => Promise<void> {
  const all = deferred<void>()
  let arrived = 0
  return () => {
    if (++arrived === parties) all.resolve()
    return all.promise
  }
}
