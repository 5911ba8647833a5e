import { describe, expect, it } from 'vitest'
import { InvalidConfigError } from '../../src/db/errors.ts'
import { defineJob } from '../../src/jobs/job-definition.ts'
import { table } from '../../src/jobs/sinks/table.ts'
import { type HoldfastConfig, resolveConfig } from '../../src/workers/config.ts'

const url = 'postgres://localhost/x'

describe('resolveConfig', () => {
  it('takes the config first, then the environment, then the embedded default', () => {
    expect(resolveConfig({}, {}).databases).toEqual({ primary: 'embedded' })
    expect(resolveConfig({}, { DATABASE_URL: url, REDIS_URL: '' })).toMatchObject({
      databases: { primary: url },
      redis: undefined,
    })
    expect(
      resolveConfig({ databases: { primary: url } }, { DATABASE_URL: 'postgres://localhost/other' }).databases
        .primary,
    ).toBe(url)
    expect(
      resolveConfig({}, { REDIS_URL: 'redis://localhost', HOLDFAST_NAMESPACE: 'shop', LOG_LEVEL: 'warn' }),
    ).toMatchObject({
      redis: 'redis://localhost',
      namespace: 'shop',
      logLevel: 'warn',
    })
  })

  it('gives a declared participant its URL from the environment', () => {
    const config = { databases: { 'eu-billing': 'postgres://localhost/a' } }
    expect(resolveConfig(config, { HOLDFAST_DATABASE_EU_BILLING_URL: url }).databases['eu-billing']).toBe(url)
  })

  it('lists every problem at once', () => {
    const config: HoldfastConfig = {
      databases: { primary: 'mysql://localhost', 'Bad Name': url },
      redis: 'localhost:6379',
      routes: [{ type: 'order.*', to: ['nowhere'] }],
      sinks: { inbox: table({ database: 'billing' }) },
    }
    const env = { HOLDFAST_DATABASE_WAREHOUSE_URL: url, LOG_LEVEL: 'loud' }
    expect(() => resolveConfig(config, env)).toThrow(InvalidConfigError)
    try {
      resolveConfig(config, env)
    } catch (error) {
      const { problems } = error as InvalidConfigError
      expect(problems).toHaveLength(6)
      for (const word of ['postgres://', 'Bad Name', 'redis://', 'nowhere', 'WAREHOUSE', 'LOG_LEVEL']) {
        expect(problems.join('\n')).toContain(word)
      }
    }
  })

  it('knows jobs by their names, and refuses two of one name and databases that are not declared', () => {
    const place = defineJob({ name: 'place', participants: ['primary', 'billing'], stage: () => null })
    const databases = { primary: url, billing: url }
    expect([...resolveConfig({ databases, jobs: [place] }, {}).jobs.keys()]).toEqual(['place'])
    expect(() => resolveConfig({ databases: { primary: url }, jobs: [place, place] }, {})).toThrow(
      /two are named place[^]*billing/,
    )
    const bare = { name: 'place', stage: () => null }
    expect(() => resolveConfig({ jobs: [bare] }, {})).toThrow('defineJob')
  })

  it('refuses keys that it does not know, and what is not a definition', () => {
    expect(() => resolveConfig({ databasse: {} } as HoldfastConfig, {})).toThrow('databasse')
    expect(() => resolveConfig({ batches: [{ name: 'x' }] } as unknown as HoldfastConfig, {})).toThrow(
      'defineBatch',
    )
    expect(() => resolveConfig({ timing: { leaseMs: -1 } }, {})).toThrow('leaseMs')
  })
})
