#!/usr/bin/env node
import '../workers/hold-young-generation.ts'
import { createRequire } from 'node:module'
import { Command } from 'commander'
import { HoldfastError } from '../db/errors.ts'
import { letHeapGrow } from '../workers/small-heap.ts'
import { batchCommand } from './batch.ts'
import { cleanupCommand } from './cleanup.ts'
import { demoCommand } from './demo.ts'
import { jobCommand } from './job.ts'
import { migrateCommand } from './migrate.ts'
import { outboxCommand } from './outbox.ts'
import { scheduleCommand } from './schedule.ts'
import { txCommand } from './tx.ts'
import { workerCommand } from './worker.ts'

/** Exit codes: 0 done, 1 failed, 2 wrong use. Standard output holds a command's result alone. */
const { version, description } = createRequire(import.meta.url)('../../package.json') as {
  version: string
  description: string
}

const program = new Command('holdfast')
  .description(description)
  .version(version)
  .showHelpAfterError()
  .exitOverride((error) => {
    process.exit(error.exitCode === 0 ? 0 : 2)
  })
  .addCommand(batchCommand())
  .addCommand(cleanupCommand())
  .addCommand(demoCommand())
  .addCommand(jobCommand())
  .addCommand(migrateCommand())
  .addCommand(outboxCommand())
  .addCommand(scheduleCommand())
  .addCommand(txCommand())
  .addCommand(workerCommand())

// A worker is the command that runs long; it says by itself what its heap is to do.
program.hook('preAction', (_program, action) => {
  if (action.name() !== 'worker') letHeapGrow()
})
inheritSettings(program)

function inheritSettings(parent: Command): void {
  for (const command of parent.commands) inheritSettings(command.copyInheritedSettings(parent))
}

try {
  await program.parseAsync()
} catch (error) {
  // Expected errors say what to do; of anything else the stack is what helps.
  const text =
    error instanceof HoldfastError
      ? `${error.code}: ${error.message}`
      : error instanceof Error
        ? error.stack
        : String(error)
  process.stderr.write(`${text}\n`)
  process.exitCode = error instanceof HoldfastError && error.code === 'HOLDFAST_INVALID_CONFIG' ? 2 : 1
}
