import { defineConfig } from 'vitest/config'
import { BaseSequencer, type TestSpecification } from 'vitest/node'

/** Small files by their size and the longest to run: begun last they would run alone, with one core idle. */
const longest = /\/test\/(crash|cli|workers)\//

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    // oxlint-disable-next-line no-array-sort -- the base class's method
    const sorted = await super.sort(files)
    const isLong = ({ moduleId }: TestSpecification) => longest.test(moduleId)
    return [...sorted.filter(isLong), ...sorted.filter((file) => !isLong(file))]
  }
}

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    globalSetup: ['test/support/servers.ts'],
    sequence: { sequencer: LongestFirst },
    // Their types are what they test; the compiler runs them, over the whole project.
    typecheck: { enabled: true, include: ['test/**/*.test-d.ts'] },
    // Two cores: more files at once only make each other slow.
    maxWorkers: 2,
    // A limit against hanging, not a measure: several runs may share the machine.
    testTimeout: 180_000,
    hookTimeout: 180_000,
    teardownTimeout: 180_000,
    expect: { poll: { timeout: 90_000 } },
  },
})
