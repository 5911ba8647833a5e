import { failAgain, nextToRetry, settleFailure } from '../db/batch-failures.ts'
import { sameJson } from '../db/json.ts'
import { readSource } from './batch-chunk.ts'
import { isPassing } from './batch-range.ts'
import { type BatchWork, hookContext, stageStep } from './batch-step.ts'

/** Rows for which somebody asked for another try, each by itself, until the signal aborts. */
export async function retryFailedRows(work: BatchWork): Promise<void> {
  const { ctx, job, definition, signal } = work
  const { sql } = ctx.databases.primary
  for (;;) {
    const row = await nextToRetry(sql, job.id)
    if (!row || signal.aborted) return
    const name = `${job.id}_retry_${row.id}_${row.tries}`
    try {
      await stageStep(work, name, async (txs) => {
        const { rows, keys, unreadable } = await readSource(work, txs, row.cursor, 1)
        if (unreadable) throw unreadable
        const found = sameJson(keys[0] ?? null, row.rowKey)
        if (found)
          await definition.process(rows, { ...hookContext(work, txs, name), chunk: 0n, range: row.range })
        await settleFailure(txs.primary, row.id, found ? 'resolved' : 'gone')
      })
    } catch (error) {
      if (isPassing(error)) throw error
      await failAgain(sql, row.id, error)
    }
  }
}
