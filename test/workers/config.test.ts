import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { InvalidConfigError } from '../../src/db/errors.ts'
import { defineBatch } from '../../src/jobs/batch-definition.ts'
import { defineJob } from '../../src/jobs/job-definition.ts'
import { keyset } from '../../src/jobs/keyset.ts'
import { table } from '../../src/jobs/sinks/table.ts'
import { type HoldfastConfig, resolveConfig } from '../../src/workers/config.ts'

const url = 'postgres://localhost/x'
const nightly = defineBatch({
  name: 'nightly',
  params: z.object({ year: z.number() }),
  source: keyset<{ id: number }>({ table: 'orders', key: ['id'] }),
  async process() {},
})

const importOrders = defineJob({
  name: 'import-orders',
  input: z.object({ shop: z.number() }),
  stage: () => null,
})

function problemsOf(config: HoldfastConfig): readonly string[] {
  try {
    resolveConfig(config, {})
    return []
  } catch (error) {
    return (error as InvalidConfigError).problems
  }
}

describe('resolveConfig', () => {
  it('names the variable of a URL that is none', () => {
    expect(() => resolveConfig({}, { DATABASE_URL: 'localhost/shop' })).toThrow(
      'DATABASE_URL: a URL starts with',
    )
  })

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

  it('takes a list as the nodes of a Redis Cluster', () => {
    const nodes = ['redis://10.0.0.1:6379', 'rediss://10.0.0.2:6379']
    expect(resolveConfig({ redis: nodes }, {}).redis).toEqual(nodes)
    expect(resolveConfig({}, { REDIS_URL: nodes.join(', ') }).redis).toEqual(nodes)
    const comma = 'redis://:p,w@10.0.0.1:6379'
    expect(resolveConfig({}, { REDIS_URL: comma }).redis).toBe(comma)
    expect(problemsOf({ redis: 'redis://a,b:6379' })).toHaveLength(1)
    expect(problemsOf({ redis: [] })).toEqual(['config.redis: the list of cluster nodes is empty'])
    expect(problemsOf({ redis: ['redis://:secret@10.0.0.1', '10.0.0.2:6379'] })).toEqual([
      'config.redis: a URL starts with redis:// or rediss://',
    ])
  })

  it('gives a declared participant its URL from the environment', () => {
    const config = { databases: { 'eu-billing': 'postgres://localhost/a' } }
    expect(resolveConfig(config, { HOLDFAST_DATABASE_EU_BILLING_URL: url }).databases['eu-billing']).toBe(url)
  })

  it('has a queue for each that a job names, and one for the others', () => {
    const mail = defineJob({ name: 'mail', queue: 'mails', stage: () => null })
    const { queues } = resolveConfig({ jobs: [mail, importOrders], queues: { jobs: { concurrency: 9 } } }, {})
    expect(Object.fromEntries(queues)).toEqual({ jobs: { concurrency: 9 }, mails: { concurrency: 4 } })
    expect(problemsOf({ jobs: [mail], queues: { mial: {}, batch: {} } })).toEqual([
      'config.queues.mial: no job runs from it; name it as the `queue` of a job',
      'config.queues: a name is one of the queues that are built in, not "batch"',
    ])
    expect(problemsOf({ queues: { jobs: { concurrency: 0, rateLimit: { max: 1 } as never } } })).toEqual([
      expect.stringContaining('config.queues.jobs.concurrency'),
      expect.stringContaining('config.queues.jobs.rateLimit.durationMs'),
    ])
    const few = defineJob({ name: 'few', concurrency: 1, queue: 'limited', stage: () => null })
    const limited = { rateLimit: { max: 1, durationMs: 1_000 } }
    expect(problemsOf({ jobs: [few], queues: { limited } })).toEqual([
      expect.stringMatching(
        /^config.jobs.0.concurrency: few has one of its own on the queue limited, .* rateLimit/,
      ),
    ])
    expect(() => defineJob({ name: 'mail', queue: 'outbox', stage: () => null })).toThrow(
      'the name of its queue, "outbox", is one of the queues that are built in',
    )
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

  it('lists what does not fit together beside what has not its shape, where it does not follow from that', () => {
    const place = defineJob({ name: 'place', participants: ['primary', 'billing'], stage: () => null })
    const schedules = [{ job: 'nothing', cron: 'x' }]
    const parts = {
      jobs: [place, place],
      queues: { mial: {} },
      routes: [{ type: '*', to: ['a', 'b'] }],
      schedules,
    }
    const wrong = { ...parts, timing: { leaseMs: -1 }, databasse: {} } as HoldfastConfig
    const places = (config: HoldfastConfig) => problemsOf(config).map((problem) => problem.split(':')[0])
    expect(places(wrong)).toEqual([
      'config.timing.leaseMs',
      'config',
      'config.routes.0.to.0',
      'config.routes.0.to.1',
      'config.jobs.1',
      'config.jobs.0.participants',
      'config.jobs.1.participants',
      'config.queues.mial',
      'config.schedules.0.job',
      'config.schedules.0.cron',
    ])
    // Nobody knows what a list of jobs or sinks would have that cannot be read.
    const unreadable = { ...parts, jobs: [7], sinks: { a: 7 }, databases: { billing: 7 } }
    expect(places(unreadable as unknown as HoldfastConfig)).toEqual([
      'config.databases.billing',
      'config.jobs.0',
      'config.sinks.a',
    ])
    expect(() => resolveConfig(null as never, {})).toThrow(InvalidConfigError)
    expect(() => resolveConfig('postgres://' as never, {})).toThrow(InvalidConfigError)
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

  it('refuses a batch on databases that are not declared, by its participants or its source', () => {
    const move = defineBatch({
      name: 'move',
      source: keyset<{ id: number }>({ table: 'orders', key: ['id'], database: 'billing' }),
      participants: ['archive'],
      async process() {},
    })
    expect(() => resolveConfig({ databases: { primary: url }, batches: [move] }, {})).toThrow(
      /config.batches.0.participants: .* declares no archive[^]*config.batches.0.source: .* declares no billing/,
    )
    const databases = { primary: url, billing: url, archive: url }
    expect(resolveConfig({ databases, batches: [move] }, {}).batches.has('move')).toBe(true)
  })

  it('refuses keys that it does not know, and what is not a definition', () => {
    expect(() => resolveConfig({ databasse: {} } as HoldfastConfig, {})).toThrow('databasse')
    expect(() => resolveConfig({ batches: [{ name: 'x' }] } as unknown as HoldfastConfig, {})).toThrow(
      'defineBatch',
    )
    expect(() => resolveConfig({ timing: { leaseMs: -1 } }, {})).toThrow('leaseMs')
    expect(() => resolveConfig({ connections: { idempotent: 0 } }, {})).toThrow('connections.idempotent')
  })

  it('completes schedules', () => {
    const config: HoldfastConfig = {
      batches: [nightly],
      schedules: [
        { batch: nightly, params: { year: 2026 }, cron: '0 3 * * *' },
        {
          batch: 'nightly',
          params: { year: 1 },
          cron: '@daily',
          tz: 'Europe/Berlin',
          missed: 'skip',
          name: 'other',
        },
      ],
    }
    expect([...resolveConfig(config, {}).schedules.values()]).toEqual([
      {
        name: 'nightly',
        cron: '0 3 * * *',
        tz: 'UTC',
        missed: 'run-once',
        target: { batch: 'nightly', params: { year: 2026 } },
      },
      {
        name: 'other',
        cron: '@daily',
        tz: 'Europe/Berlin',
        missed: 'skip',
        target: { batch: 'nightly', params: { year: 1 } },
      },
    ])
  })

  it('completes schedules of jobs', () => {
    const config: HoldfastConfig = {
      batches: [nightly],
      jobs: [importOrders, defineJob({ name: 'sweep', stage: () => null })],
      schedules: [
        { job: importOrders, input: { shop: 7 }, cron: '0 * * * *', missed: 'backfill' },
        { job: 'sweep', cron: '@daily', name: 'nightly-sweep' },
      ],
    }
    expect([...resolveConfig(config, {}).schedules.values()]).toEqual([
      {
        name: 'import-orders',
        cron: '0 * * * *',
        tz: 'UTC',
        missed: 'backfill',
        target: { job: 'import-orders', input: { shop: 7 } },
      },
      {
        name: 'nightly-sweep',
        cron: '@daily',
        tz: 'UTC',
        missed: 'run-once',
        target: { job: 'sweep', input: null },
      },
    ])
  })

  it('lists everything that is wrong with schedules, with its place', () => {
    const wrong = { batch: 'nightly', params: { year: 2026 }, cron: '0 3 * * *' }
    const schedules = [
      { ...wrong, name: 'a', cron: '61 * * * *', tz: 'Mars/Base' },
      { ...wrong, batch: 'nightyl', name: 'b' },
      { ...wrong, params: { year: 'two' }, name: 'c' },
      { ...wrong, params: { year: 1n }, name: 'd' },
      { ...wrong, name: 'Not A Name' },
      wrong,
      { ...wrong, cron: '0 4 * * *' },
    ]
    expect(problemsOf({ batches: [nightly], schedules, redis: 'localhost' })).toEqual([
      expect.stringContaining('redis'),
      expect.stringMatching(/^config\.schedules\.0\.cron: .*61/),
      expect.stringMatching(/^config\.schedules\.0\.tz: .*Mars/),
      expect.stringMatching(/^config\.schedules\.1\.batch: .*nightyl.*known: nightly$/),
      expect.stringMatching(/^config\.schedules\.2\.params: year/),
      expect.stringMatching(/^config\.schedules\.3\.params: .*bigint/),
      expect.stringMatching(/^config\.schedules\.4\.name: "Not A Name"/),
      expect.stringMatching(/^config\.schedules\.6\.name: two schedules are named nightly/),
    ])
    const shapeless = [
      { batch: 1, cron: 5, missed: 'later', evry: 1 },
    ] as unknown as HoldfastConfig['schedules']
    expect(problemsOf({ schedules: shapeless ?? [] })).toHaveLength(4)
  })

  it('lists what is wrong with schedules of jobs, and with those that have two targets or none', () => {
    const [job, cron] = ['import-orders', '0 * * * *']
    const throwing = defineJob({
      name: 'throwing',
      input: {
        '~standard': {
          version: 1,
          vendor: 'test',
          validate() {
            throw new Error('the schema threw')
          },
        },
      },
      stage: () => null,
    })
    const schedules = [
      { job: 'import-ordrs', cron, name: 'a' },
      { job, input: { shop: 'x' }, cron, name: 'b' },
      { job, input: { shop: 1n }, cron, name: 'c' },
      { job, cron, name: 'd' },
      { job, input: { shop: 1 }, params: {}, cron, name: 'e' },
      { batch: 'nightly', params: { year: 1 }, input: null, cron, name: 'f' },
      { batch: 'nightyl', job, cron: '61 * * * *', name: 'g' },
      { cron },
      { job: throwing, cron, name: 'i' },
      { batch: 'import-orders', params: {}, cron, name: 'j' },
    ] as unknown as NonNullable<HoldfastConfig['schedules']>
    const config = { batches: [nightly], jobs: [importOrders, throwing], schedules }
    expect(problemsOf(config)).toEqual([
      expect.stringMatching(/^config\.schedules\.0\.job: .*import-ordrs.*known: import-orders, throwing$/),
      expect.stringMatching(/^config\.schedules\.1\.input: shop/),
      expect.stringMatching(/^config\.schedules\.2\.input: .*bigint/),
      expect.stringMatching(/^config\.schedules\.3\.input: /),
      expect.stringMatching(/^config\.schedules\.4\.params: a job has input/),
      expect.stringMatching(/^config\.schedules\.5\.input: a batch has params/),
      expect.stringMatching(/^config\.schedules\.6\.batch: no batch named nightyl/),
      expect.stringMatching(/^config\.schedules\.6\.input: /),
      expect.stringMatching(/^config\.schedules\.6: it has a batch and a job/),
      expect.stringMatching(/^config\.schedules\.6\.cron: /),
      expect.stringMatching(/^config\.schedules\.7: it has neither a batch nor a job/),
      expect.stringMatching(/^config\.schedules\.8\.input: the schema threw/),
      expect.stringMatching(/^config\.schedules\.9\.batch: no batch named import-orders/),
    ])
    const shapeless = [{ job: 1, cron }] as unknown as NonNullable<HoldfastConfig['schedules']>
    expect(problemsOf({ schedules: shapeless })).toEqual([
      'config.schedules.0.job: is not a job definition or its name',
    ])
  })
})
