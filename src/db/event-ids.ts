import { randomFillSync } from 'node:crypto'
import { v7 } from 'uuid'

/** Random bytes in store: asking the system for sixteen costs as much as for thousands, and more than the rest of an id. */
const pool = new Uint8Array(16 * 256)
let used = pool.length

const uuidPattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i

export function isEventId(text: string): boolean {
  return uuidPattern.test(text)
}

/** A new UUIDv7. */
export function newEventId(): string {
  if (used === pool.length) {
    randomFillSync(pool)
    used = 0
  }
  const random = pool.subarray(used, (used += 16))
  return v7({ random })
}
