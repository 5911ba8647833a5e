import { expect, it } from 'vitest'
import { appendJobRun, sinceLastRun } from '../../src/db/job-runs.ts'
import { newDatabases, openContext } from '../support/database.ts'

const hourMs = 60 * 60 * 1000

it('a job that never succeeded is as late as the installation is old', async () => {
  const { databases } = await openContext(await newDatabases())
  const { sql } = databases.primary
  await sql`update holdfast.installation set recorded_at = recorded_at - interval '3 hours'`
  const since = await sinceLastRun(sql, 'clean-up')
  expect(since.never).toBe(true)
  expect(since.ms).toBeGreaterThanOrEqual(3 * hourMs)
  await databases.primary.transaction((tx) => appendJobRun(tx, 'clean-up', {}))
  const now = await sinceLastRun(sql, 'clean-up')
  expect(now.never).toBe(false)
  expect(now.ms).toBeLessThan(hourMs)
  expect(await sinceLastRun(sql, 'another')).toMatchObject({ never: true })
})
