import { setTimeout as pause } from 'node:timers/promises'

/**
 * Asks again until the answer is yes. Events come a moment after their commit, and nobody is told when the last one did. Past
 * the limit it goes on all the same: the reconciliation says what is missing.
 */
export async function until(question, limitMs = 120_000) {
  const end = Date.now() + limitMs
  while (!(await question()) && Date.now() < end) await pause(100)
}
