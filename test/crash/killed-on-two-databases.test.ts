import { describe } from 'vitest'
import { killAtEveryStep } from './kills.ts'

describe('on two databases', () => {
  killAtEveryStep(2)
})
