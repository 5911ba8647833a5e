import '../src/workers/hold-young-generation.ts'
import { redisStream } from '../src/jobs/sinks/redis-stream.ts'
import { createHoldfast } from '../src/workers/holdfast.ts'
import { keepHeapSmall } from '../src/workers/small-heap.ts'
import { peakMemoryMb } from './peak-memory.ts'

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
  const peakMb = peakMemoryMb()
  void holdfast.close().then(() => {
    process.send?.({ peakMb })
    process.disconnect()
  })
})
// Nobody is left to stop it.
process.once('disconnect', () => process.exit())
