import '../src/workers/hold-young-generation.ts'
import { keepHeapSmall } from '../src/workers/small-heap.ts'
import { runToEnd, updateRows } from './batch-rows.ts'
import { openBenchContext } from './context.ts'
import { peakMemoryMb } from './peak-memory.ts'

/** Runs a batch over all rows, as `holdfast worker` would, and prints how much memory it took at its peak, in MB. */
keepHeapSmall()
const { ctx, close } = await openBenchContext(process.argv[2] ?? '')
try {
  await runToEnd(ctx, updateRows({ parallel: 4 }))
} finally {
  await close()
}
process.stdout.write(String(peakMemoryMb()))
