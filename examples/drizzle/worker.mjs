import { createHoldfast } from 'holdfast'
import { workUntilStopped } from '../shared/processes.mjs'
import config from './holdfast.config.mjs'

await workUntilStopped(await createHoldfast(config))
