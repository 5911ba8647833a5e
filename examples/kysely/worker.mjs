import { createHoldfast } from 'holdfast'
import { webhook } from 'holdfast/sinks/webhook'
import { workUntilStopped } from '../shared/processes.mjs'
import config from './holdfast.config.mjs'

// Here and not in the config, since the address of the mailer is known to the worker alone.
const mailer = webhook({ url: process.env.MAILER_URL, secret: process.env.MAILER_SECRET })
await workUntilStopped(await createHoldfast({ ...config, sinks: { mailer } }))
