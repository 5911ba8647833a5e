import { Command } from 'commander'
import { resolveConfig } from '../workers/config.ts'
import { createContext } from '../workers/context.ts'
import { runUntilSignal } from '../workers/lifecycle.ts'
import { createLog } from '../workers/log.ts'
import { keepHeapSmall, letHeapGrow } from '../workers/small-heap.ts'
import { WorkerService } from '../workers/worker.ts'
import { loadHoldfastConfig } from './load-config.ts'

type WorkerOptions = { config?: string; migrate?: boolean; queues?: string[]; largeHeap?: boolean }

export function workerCommand(): Command {
  return new Command('worker')
    .description('work on the queues until SIGTERM or SIGINT; a second signal ends it at once')
    .option('-c, --config <file>', 'the config file; default holdfast.config.ts or .js here')
    .option('--migrate', 'bring the schema up to date first')
    .option('--queues <names...>', 'work on these queues alone; others are for other workers')
    .option('--json', 'as it is anyway: the log, on standard error, has a JSON object in each line')
    .option(
      '--large-heap',
      "for jobs that keep much in memory: leaves the garbage collector to Node's defaults",
    )
    .action(async (options: WorkerOptions) => {
      if (options.largeHeap === true) letHeapGrow()
      else keepHeapSmall()
      const loaded = await loadHoldfastConfig(options.config)
      const config = resolveConfig(
        options.migrate === true ? { ...loaded, migrate: true } : loaded,
        process.env,
      )
      const log = createLog(config.logLevel, 'holdfast worker')
      if (config.jobs.size + config.batches.size + config.sinks.size === 0)
        log.warn(
          'no jobs, batches or sinks: the config is holdfast.config.ts (or .js) in the working directory, or name it with -c',
        )
      const ctx = await createContext(config, 'worker', log)
      await runUntilSignal(ctx, new WorkerService(ctx, options))
    })
}
