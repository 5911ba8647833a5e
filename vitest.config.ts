import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    globalSetup: ['test/support/servers.ts'],
    // Two cores: more files at once only make each other slow.
    maxWorkers: 2,
    // A limit against hanging, not a measure: several runs may share the machine.
    testTimeout: 180_000,
    hookTimeout: 180_000,
    teardownTimeout: 60_000,
    expect: { poll: { timeout: 90_000 } },
  },
})
