import { describe } from 'vitest'
import { killAtEveryStep } from './kills.ts'

describe('on one database', () => {
  killAtEveryStep(1)
})
