import { readFileSync } from 'node:fs'
import { redisStream } from '../src/jobs/sinks/redis-stream.ts'
import { createHoldfast } from '../src/workers/holdfast.ts'
import { keepHeapSmall } from '../src/workers/small-heap.ts'

/**
 * A worker as `holdfast worker` runs it, in a process of its own: its sink, named as its stream, takes whatever the outbox
 * holds. Told to stop it says how much memory it took at its peak.
 */
const [postgres = '', redis = '', stream = ''] = process.argv.slice(2)

keepHeapSmall()
const holdfast = await createHoldfast({
  databases: { primary: postgres },
  redis,
  sinks: { [stream]: redisStream({ url: redis, stream }) },
})
await holdfast.start()
process.once('message', () => {
  const peakMb = peakKb() / 1_024
  void holdfast.close().then(() => {
    process.send?.({ peakMb })
    process.disconnect()
  })
})
// Nobody is left to stop it.
process.once('disconnect', () => process.exit())

/**
 * Of this program alone. getrusage, where Node has `maxRSS` from, begins with what the parent had when it forked, so it is
 * good only where there is nothing better.
 */
function peakKb(): number {
  if (process.platform !== 'linux') return process.resourceUsage().maxRSS
  const line = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))
  return Number(line?.[1] ?? Number.NaN)
}
