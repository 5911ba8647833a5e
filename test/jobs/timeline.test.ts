import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createClient } from '../../src/db/client.ts'
import { createDatabase } from '../../src/db/create-database.ts'
import { type EmbeddedServer, startEmbedded } from '../../src/db/embedded/server.ts'
import { isInRecovery } from '../../src/db/prepared.ts'
import { confirmTimeline } from '../../src/db/timelines.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { commitDistributed } from '../../src/jobs/coordinator.ts'
import { outcome } from '../../src/jobs/outcome.ts'
import { recover } from '../../src/jobs/recovery.ts'
import { newDatabase, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'

/** A participant whose server is put back to an earlier time, as from a backup: a real restore, on a new timeline. */
let base: string
let server: EmbeddedServer
const settings = { fsync: 'off', restore_command: 'false' }

beforeAll(async () => {
  base = await mkdtemp(join(tmpdir(), 'timeline-'))
  server = await startEmbedded({ dir: join(base, 'live'), settings })
})

afterAll(async () => {
  await server.release()
  await rm(base, { recursive: true, force: true })
})

async function backUp(): Promise<void> {
  await server.release()
  await cp(join(base, 'live/data'), join(base, 'backup'), { recursive: true })
  server = await startEmbedded({ dir: join(base, 'live'), settings })
}

async function restore(): Promise<void> {
  await server.release()
  await rm(join(base, 'live/data'), { recursive: true })
  await cp(join(base, 'backup'), join(base, 'live/data'), { recursive: true })
  await writeFile(join(base, 'live/data/recovery.signal'), '')
  server = await startEmbedded({ dir: join(base, 'live'), settings })
  // It answers before it has left recovery, read-only until then.
  const sql = createClient(server.url, { max: 1 })
  await expect.poll(() => isInRecovery(sql)).toBe(false)
  await sql.end()
}

const work = async () => null

describe('a participant restored from a backup', () => {
  it('is left alone until an operator confirms it; then what came back is finished, and what is lost is reported', async () => {
    const primary = await newDatabase()
    const billing = async () => createDatabase(server.url, 'billing')
    const before = await openContext({ primary, billing: await billing() })
    await beginDistributed(before, 'comes-back', { primary: work, billing: work })
    await recover(before)
    await before.lease.end()
    await before.databases.end()
    await backUp()

    const live = await openContext({ primary, billing: await billing() })
    await commitDistributed(live, 'comes-back')
    await beginDistributed(live, 'is-lost', { primary: work, billing: work })
    await live.lease.end()
    await live.databases.end()
    await restore()

    // The committed gid is prepared again, and the other one's PREPARE never was.
    const after = await openContext({ primary, billing: await billing() })
    expect(await preparedGids(after)).toHaveLength(2)
    expect(await recover(after)).toMatchObject({ committed: 0, rolledBack: 0 })
    expect(await preparedGids(after)).toHaveLength(2)
    expect(await after.telemetry.registry.metrics()).toContain(
      'holdfast_alerts_total{kind="timeline_changed"} 1',
    )

    const confirmed = await confirmTimeline(
      after.databases.primary.sql,
      after.databases.get('billing'),
      'test',
    )
    expect(confirmed.timeline).toBe(2)
    expect(await recover(after)).toMatchObject({ committed: 1, rolledBack: 1 })
    expect(await preparedGids(after)).toEqual([])
    expect((await outcome(after, 'comes-back')).state).toBe('committed')
    expect(await outcome(after, 'is-lost')).toMatchObject({
      state: 'rolled_back',
      evidence: { reason: 'rolled back by hand, or lost, on billing' },
    })
  })
})
