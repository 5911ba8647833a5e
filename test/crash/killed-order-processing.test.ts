import { killExample } from './example-kills.ts'

await killExample('order-processing', {
  plan: 'error after the charge',
  first: [
    'begin.prepared-one',
    'run.effects',
    'rollback.fenced-one',
    'run.effects-done',
    'commit.committed-one',
  ],
})
