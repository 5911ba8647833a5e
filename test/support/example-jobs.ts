import assert from 'node:assert/strict'
import { pathToFileURL } from 'node:url'
import { transactionOfJob } from '../../src/db/jobs.ts'
import { compensate, dueCompensations } from '../../src/jobs/compensate.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import type { JobDefinition } from '../../src/jobs/job-definition.ts'
import { registerJob } from '../../src/jobs/run-job.ts'
import { endPauses, runJobToItsEnd } from './run-job-to-its-end.ts'

/** What the stub service of the examples does to a call; each strikes once, but for `refuse`. */
type Fault = 'error-before' | 'error-after' | 'time-out' | 'slow' | 'refuse'

/** What goes wrong, by call as the stub names it, and whether the job completes nevertheless. */
export type Plan = {
  faults: Record<string, Fault>
  completes: boolean
  /** more of the job's input */
  input?: Record<string, unknown>
}

export type ExampleJob = {
  /** the module in the example's folder, and what it exports the job as */
  module: string
  exported: string
  participants: readonly string[]
  /** the variable that has the address of the service */
  service: string
  calls: readonly string[]
  /** by participant */
  tables: Record<string, string>
  /** whose order or mailbox it is */
  subject: (n: number) => string
  input: (subject: string) => Record<string, unknown>
  /** what the example's `reconcile` is told of what was asked for */
  asked: (subjects: string[]) => Record<string, unknown>
  plans: Record<string, Plan>
}

const stock = 10
const orders = 1_000

/** The jobs of the examples, as they are there, with everything that goes wrong in them. */
export const exampleJobs = {
  'order-processing': {
    module: 'place-order.mjs',
    exported: 'placeOrder',
    participants: ['primary', 'inventory'],
    service: 'PAYMENTS_URL',
    calls: ['charges'],
    tables: {
      primary: `create table orders (id text primary key, sku text not null, quantity int not null, cents int not null)`,
      // An article for each order: they are prepared at the same time, and one would wait for another.
      inventory: `create table stock (sku text primary key, quantity int not null check (quantity >= 0));
        insert into stock select 'order-' || n, ${stock} from generate_series(0, ${orders - 1}) n`,
    },
    subject: (n) => `order-${n}`,
    input: (id) => ({ id, sku: id, quantity: 2, cents: 2_500 }),
    asked: (subjects) => ({ placed: subjects.map((id) => ({ id })), initial: stock * orders }),
    plans: {
      'error before the charge': { faults: { charges: 'error-before' }, completes: true },
      'error after the charge': { faults: { charges: 'error-after' }, completes: true },
      'charged, without an answer': { faults: { charges: 'time-out' }, completes: true },
      'charged slowly': { faults: { charges: 'slow' }, completes: true },
      'card refused': { faults: { charges: 'refuse' }, completes: false },
      'errors after the charge and after the refund': {
        faults: { charges: 'error-after', 'undo charges': 'error-after' },
        completes: true,
      },
      'out of stock': { faults: {}, completes: false, input: { quantity: stock + 1 } },
    },
  },
  'user-onboarding': {
    module: 'onboard-user.mjs',
    exported: 'onboardUser',
    participants: ['primary'],
    service: 'PROVISIONING_URL',
    calls: ['mailboxes', 'directory', 'teams'],
    tables: {
      primary: `create table users (id int generated always as identity primary key, login text not null unique);
        create table audit (what text not null, user_id int not null, job text not null)`,
    },
    // Letters alone make a login.
    subject: (n) => `user${String(n).replaceAll(/\d/g, (digit) => 'abcdefghij'.charAt(Number(digit)))}`,
    input: (login) => ({ login }),
    asked: (logins) => ({ logins }),
    plans: {
      'error before the mailbox': { faults: { mailboxes: 'error-before' }, completes: true },
      'error after the entry': { faults: { directory: 'error-after' }, completes: true },
      'team made, without an answer': { faults: { teams: 'time-out' }, completes: true },
      'entry made slowly': { faults: { directory: 'slow' }, completes: true },
      'team refused': { faults: { teams: 'refuse' }, completes: false },
      'team refused, and error after the entry is taken back': {
        faults: { teams: 'refuse', 'undo directory': 'error-after' },
        completes: false,
      },
    },
  },
} satisfies Record<string, ExampleJob>

export type ExampleName = keyof typeof exampleJobs

/** `folder`: of the examples, beside a compiled Holdfast, which they import by its name. */
export async function loadJob(folder: string, name: ExampleName): Promise<JobDefinition> {
  const { module, exported } = exampleJobs[name]
  const exports = (await import(pathToFileURL(`${folder}/${name}/${module}`).href)) as Record<
    string,
    JobDefinition | undefined
  >
  const definition = exports[exported]
  assert(definition, `${module} exports ${exported}`)
  return definition
}

/** What a worker does until nothing of a job is left to do: the job, again and again, and what is to be taken back. */
export async function workOff(ctx: JobContext, definition: JobDefinition, jobId: string): Promise<void> {
  registerJob(ctx, definition)
  await runJobToItsEnd(ctx, definition, jobId)
  for (let round = 0; round < 10; round++) {
    await endPauses(ctx)
    const due = (await dueCompensations(ctx)).filter(({ name }) => name === transactionOfJob(jobId))
    if (due.length === 0) return
    for (const { attempt } of due) await compensate(ctx, attempt, new AbortController().signal)
  }
  assert.fail(`what job ${jobId} did is not taken back`)
}
