import { InvalidConfigError } from '../db/errors.ts'
import type { NewEvent } from '../db/outbox.ts'
import type { Tx } from '../db/tx.ts'
import type { JobDefinition, StageContext } from './job-definition.ts'

/** Calls the `stage` of a job over the transactions of its participants; `append` appends events in that on `primary`. */
export function stageJob(
  definition: JobDefinition,
  context: Omit<StageContext<unknown, string>, 'tx' | 'publish'>,
  append: (primary: Tx, events: NewEvent | readonly NewEvent[]) => Promise<string[]>,
): unknown {
  const { primary } = context.txs
  return definition.stage({
    ...context,
    tx: primary as Tx,
    publish: async (events) => {
      if (primary) return append(primary, events)
      throw new InvalidConfigError([
        `job ${definition.name}: publish needs \`primary\` among its participants`,
      ])
    },
  })
}
