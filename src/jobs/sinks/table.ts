import type { Participant } from '../../db/databases.ts'
import { FencedError, InvalidConfigError } from '../../db/errors.ts'
import { deliverToInbox } from '../../db/inbox.ts'
import { SQLSTATE, sqlstateOf } from '../../db/sqlstate.ts'
import type { OpenSink, Page, Published, Sink } from './sink.ts'

/**
 * Delivers into table `holdfast.inbox` of another configured database, exactly once.
 *
 * The cursor is prepared first (the page). The target commits next, in a plain transaction that carries the page's
 * marker; then the cursor commits. So the target's marker is the decision: whoever finds the page in doubt fences the
 * target, and commits the cursor if the marker was there first, rolls it back if not. One prepared transaction does
 * for two databases, since nothing comes between the target's commit and the knowledge of it that the marker holds.
 */
export function table(options: { database: string }): Sink {
  return {
    guarantee: 'exactly once, as long as neither database is restored to an earlier time',
    open: async ({ databases }) => {
      const target = databases.get(options.database)
      if (target === databases.primary) {
        throw new InvalidConfigError([
          'table: the target is another database than primary; events are in primary already',
        ])
      }
      return openTable(target)
    },
  }
}

function openTable(target: Participant): OpenSink {
  return {
    target: target.name,
    async publish(page: Page): Promise<Published> {
      try {
        await deliverToInbox(target, page.attempt, page.events)
      } catch (error) {
        if (sqlstateOf(error) !== SQLSTATE.uniqueViolation) throw error
        throw new FencedError(`the page at ${page.position} of ${page.sink} was taken over`, { cause: error })
      }
      return { rejected: [] }
    },
    close: async () => undefined,
  }
}
