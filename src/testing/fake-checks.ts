import { InvalidConfigError, UnknownParticipantError } from '../db/errors.ts'
import { type BeginOptions, checkBeginOptions } from '../jobs/begin-options.ts'
import type { JobDefinition } from '../jobs/job-definition.ts'
import type { FakeContext } from './fake-context.ts'

/** Throws UnknownParticipantError, as the real begin does. */
export function checkParticipant(fake: FakeContext, participant: string): void {
  if (fake.participants.includes(participant)) return
  throw new UnknownParticipantError(
    `no database named ${JSON.stringify(participant)} is configured; known: ${fake.participants.join(', ')}`,
  )
}

/** Throws InvalidConfigError with everything that is wrong; besides the real checks, with services that the fake lacks. */
export function checkOptions(fake: FakeContext, options: BeginOptions): void {
  checkBeginOptions(fake.participants, options)
  const unknown = options.awaits?.filter((service) => fake.services?.includes(service) === false) ?? []
  if (unknown.length > 0)
    throw new InvalidConfigError(
      unknown.map((service) => `awaits: the fake has no service named ${JSON.stringify(service)}`),
    )
}

/** Throws InvalidConfigError with everything that is wrong with the jobs of a fake. */
export function checkJobs(known: readonly string[], jobs: readonly JobDefinition[]): void {
  const problems = jobs.flatMap(({ name, participants = [] }, i) => [
    ...(jobs.findIndex((other) => other.name === name) < i ? [`jobs: two are named ${name}`] : []),
    ...participants
      .filter((participant) => !known.includes(participant))
      .map(
        (participant) => `jobs: ${name} takes part on ${participant}, which \`participants\` does not name`,
      ),
  ])
  if (problems.length > 0) throw new InvalidConfigError(problems)
}
