import { readFileSync } from 'node:fs'

/**
 * The most that this process had in memory so far, in megabytes. Of this program alone: getrusage, where Node has `maxRSS`
 * from, begins with what the parent had when it forked, so it is good only where there is nothing better.
 */
export function peakMemoryMb(): number {
  if (process.platform !== 'linux') return process.resourceUsage().maxRSS / 1_024
  const line = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))
  return Number(line?.[1] ?? Number.NaN) / 1_024
}
