import { randomBytes, randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { createDatabase, dropDatabase } from '../../db/create-database.ts'
import type { Databases } from '../../db/databases.ts'
import { startEmbedded } from '../../db/embedded/server.ts'
import { listPrepared, rollbackPrepared } from '../../db/prepared.ts'
import { ownerOf, parseGid } from '../../db/transaction-name.ts'
import { enqueueBatchJob } from '../../jobs/enqueue-batch.ts'
import { builtInQueues } from '../../jobs/job-queue.ts'
import { verifyBatch } from '../../jobs/verify-batch.ts'
import { resolveConfig } from '../../workers/config.ts'
import { type Context, createContext } from '../../workers/context.ts'
import { createLog } from '../../workers/log.ts'
import { batchQueueJob } from '../../workers/worker.ts'
import { describeVerification } from '../batch-print.ts'
import { checkServer } from './check-server.ts'
import { Crew } from './crew.ts'
import { demoConfig } from './demo-config.ts'
import { importFlights, loadFlights, readFlights } from './flights.ts'
import { type PlannedKill, planKills } from './kill-plan.ts'
import { ProgressBars } from './progress.ts'
import { countPrepared, type Reconciliation, readProgress, reconcile } from './reconcile.ts'

export type DemoOptions = {
  rows: number | undefined
  kills: number
  /** keep the workers and the databases until SIGINT or SIGTERM */
  stay: boolean
  /** for the embedded server and the workers' log */
  folder: string
  databaseUrl: string | undefined
  redis: string | undefined
}

export type DemoReport = Reconciliation & {
  kills: number
  /** transactions that a killed worker left prepared: those finished by the others, and those still there */
  inDoubt: { resolved: number; left: number }
  seconds: number
}

const workers = 3
/** How long the run may make no progress before it ends as it stands; the report then says what is missing. */
const stalledMs = 60_000

export async function runDemo(
  options: DemoOptions,
  onReport: (report: DemoReport) => void,
): Promise<DemoReport> {
  const started = performance.now()
  const flights = readFlights().slice(0, options.rows)
  const undo: (() => Promise<void>)[] = []
  const interrupted = interruption()
  undo.push(async () => interrupted.stop())
  try {
    const server = await openServer(options, undo)
    const suffix = randomBytes(4).toString('hex')
    const urls = {
      primary: await ownDatabase(server, `holdfast_demo_${suffix}`, undo),
      target: await ownDatabase(server, `holdfast_demo_${suffix}_target`, undo),
      redis: options.redis,
    }
    const config = { ...demoConfig(urls), migrate: true }
    const ctx = await createContext(resolveConfig(config, {}), 'producer', createLog('warn', 'demo'))
    undo.push(() => leaveNothing(ctx))
    say(`loading ${flights.length.toLocaleString('en-US')} flights`)
    await loadFlights(ctx.databases.primary.sql, flights)

    const logFile = join(options.folder, 'demo.log')
    const crew = new Crew(urls, logFile)
    undo.push(() => crew.dismiss())
    say(
      `starting ${workers} workers (queues on ${options.redis === undefined ? 'PostgreSQL' : 'Redis'}; their log: ${logFile})`,
    )
    await Promise.all(Array.from({ length: workers }, () => crew.hire()))
    const { jobId } = await enqueueBatchJob(ctx, importFlights, {}, randomUUID())
    await ctx.queues.add('batch', batchQueueJob(jobId))

    const inDoubt = new Set<string>()
    const kills = await watchRun(
      ctx,
      crew,
      planKills(options.kills),
      flights.length,
      inDoubt,
      interrupted.signal,
    )
    const left = await waitUntilNoneLeft(ctx.databases)
    const resolved = [...inDoubt].filter((gid) => !left.has(gid)).length
    const report: DemoReport = {
      ...(await reconcile(ctx.databases)),
      kills,
      inDoubt: { resolved, left: await countPrepared(ctx.databases) },
      seconds: Math.round((performance.now() - started) / 100) / 10,
    }
    const verification = await verifyBatch(ctx, ctx.config.batches, jobId)
    say(describeVerification(verification).trimEnd())
    onReport(report)
    if (options.stay && !interrupted.signal.aborted) {
      say('the workers go on; Ctrl-C ends the demo and drops its databases')
      await interrupted.promise
    }
    return report
  } finally {
    for (const step of undo.toReversed()) await step()
  }
}

async function openServer(options: DemoOptions, undo: (() => Promise<void>)[]): Promise<string> {
  if (options.databaseUrl !== undefined) {
    await checkServer(options.databaseUrl)
    return options.databaseUrl
  }
  say('starting the embedded PostgreSQL')
  const server = await startEmbedded({ dir: options.folder })
  undo.push(() => server.release())
  return server.url
}

async function ownDatabase(server: string, name: string, undo: (() => Promise<void>)[]): Promise<string> {
  const url = await createDatabase(server, name)
  undo.push(() => dropDatabase(server, name))
  return url
}

/** The databases are about to be dropped, and a prepared transaction would keep them. The report is out by now. */
async function leaveNothing(ctx: Context): Promise<void> {
  for (const participant of ctx.databases.all) {
    for (const { gid } of await listPrepared(participant.sql, ctx.installation))
      await rollbackPrepared(participant, gid)
  }
  await ctx.queues.obliterate([...builtInQueues, ...ctx.config.queues.keys()])
  await ctx.close()
}

/** Shows progress and kills by plan until everything is through, or nothing moves any more. Returns the kills. */
async function watchRun(
  ctx: Context,
  crew: Crew,
  plan: PlannedKill[],
  expected: number,
  inDoubt: Set<string>,
  signal: AbortSignal,
): Promise<number> {
  const bars = new ProgressBars(expected)
  let kills = 0
  let lastMove = { at: performance.now(), sum: -1 }
  try {
    for (;;) {
      const progress = await readProgress(ctx.databases)
      bars.update(progress)
      const due = plan.findIndex((kill) => progress[kill.after] >= kill.share * expected)
      const [kill] = due < 0 ? [] : plan.splice(due, 1)
      if (kill) {
        const victim = await crew.kill(kill.step)
        kills++
        for (const gid of await preparedBy(ctx, victim.owner)) inDoubt.add(gid)
        bars.note(`killed a worker at ${victim.at}`)
        await crew.hire()
        continue
      }
      if (progress.completed && progress.events >= expected) return kills
      const sum = progress.rows + progress.events
      if (sum > lastMove.sum) lastMove = { at: performance.now(), sum }
      if (performance.now() - lastMove.at > stalledMs || signal.aborted) return kills
      await new Promise((resolve) => setTimeout(resolve, 200))
    }
  } finally {
    bars.stop()
  }
}

async function preparedBy(ctx: Context, owner: string): Promise<string[]> {
  const found: string[] = []
  for (const participant of ctx.databases.all) {
    for (const { gid } of await listPrepared(participant.sql, ctx.installation)) {
      const parts = parseGid(gid)
      if (parts && ownerOf(parts.attempt) === owner) found.push(gid)
    }
  }
  return found
}

/** Gives the last page time to be committed, or resolved by recovery; returns the gids that are left. */
async function waitUntilNoneLeft(databases: Databases): Promise<Set<string>> {
  const until = performance.now() + 15_000
  for (;;) {
    const rows = await databases.primary.sql<{ gid: string }[]>`select gid from pg_catalog.pg_prepared_xacts`
    if ((await countPrepared(databases)) === 0 || performance.now() > until)
      return new Set(rows.map((row) => row.gid))
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}

function interruption(): { signal: AbortSignal; promise: Promise<void>; stop: () => void } {
  const controller = new AbortController()
  const abort = () => {
    if (controller.signal.aborted) process.exit(130)
    controller.abort()
  }
  process.on('SIGINT', abort)
  process.on('SIGTERM', abort)
  const promise = new Promise<void>((resolve) => {
    controller.signal.addEventListener('abort', () => resolve())
  })
  const stop = () => {
    process.off('SIGINT', abort)
    process.off('SIGTERM', abort)
  }
  return { signal: controller.signal, promise, stop }
}

function say(text: string): void {
  process.stderr.write(`${text}\n`)
}
