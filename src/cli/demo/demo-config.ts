import { parseUrls } from '../../jobs/sinks/redis-urls.ts'
import { table } from '../../jobs/sinks/table.ts'
import type { HoldfastConfig } from '../../workers/config.ts'
import { importFlights } from './flights.ts'

/** Short leases, so that a killed worker's jobs are taken over within seconds. */
export function demoConfig(urls: {
  primary: string
  target: string
  redis: string | undefined
}): HoldfastConfig {
  return {
    databases: { primary: urls.primary, target: urls.target },
    ...(urls.redis === undefined ? {} : { redis: parseUrls(urls.redis) }),
    batches: [importFlights],
    sinks: { inbox: table({ database: 'target' }) },
    timing: { leaseMs: 2_000, lockMs: 2_000, recoverEveryMs: 2_000, assertEveryMs: 500, drainMs: 10_000 },
  }
}
