import { killExample } from './example-kills.ts'

await killExample('user-onboarding', {
  plan: 'error after the entry',
  first: ['run.effects', 'run.effects-done'],
})
