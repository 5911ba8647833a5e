import { defineJob } from 'holdfast'
import { z } from 'zod'
import { callService } from '../shared/call-service.mjs'

/** In the order in which they are provisioned: who is in the team has an entry in the directory, and a mailbox. */
export const services = ['mailboxes', 'directory', 'teams']

/** A user with everything that belongs to one, or no user and nothing. */
export const onboardUser = defineJob({
  name: 'onboard-user',
  input: z.object({ login: z.string().regex(/^[a-z]+$/) }),
  retry: { attempts: 3, backoffMs: 200 },

  async stage({ tx, input, jobId }) {
    const [user] = await tx`insert into users (login) values (${input.login}) returning id`
    await tx`insert into audit (what, user_id, job) values ('onboarded', ${user.id}, ${jobId})`
    return { userId: user.id }
  },

  // After a crash this begins again from the top; the services know the key and have nothing to do for what is there.
  async effects({ staged, input, idempotencyKey, signal }) {
    for (const service of services) {
      await callService(`${process.env.PROVISIONING_URL}/${service}`, {
        key: idempotencyKey,
        body: { subject: input.login, userId: staged.userId },
        signal,
      })
    }
  },

  // Nothing records how far the effects came, so everything is taken back, the last first. A service that was never
  // asked remembers the key and refuses it from then on. When one fails, all of this is done again later.
  async compensate({ effectsKey, idempotencyKey, signal }) {
    for (const service of services.toReversed()) {
      await callService(`${process.env.PROVISIONING_URL}/${service}/${encodeURIComponent(effectsKey)}`, {
        method: 'DELETE',
        key: idempotencyKey,
        signal,
      })
    }
  },
})
