import type { JetStreamManager } from '@nats-io/jetstream'
import { SinkUnavailableError } from '../../db/errors.ts'

/** What the sink must know of its stream. */
export type NatsStream = {
  name: string
  /** filters; empty for a mirror, which takes nothing from publishers */
  subjects: readonly string[]
  /** headers and payload together; undefined without a limit of the stream's own */
  maxMessageBytes: number | undefined
  duplicateWindowMs: number
}

/** err_code of JetStream */
const streamNotFound = 10059

export async function readStream(manager: JetStreamManager, name: string): Promise<NatsStream> {
  const { config } = await manager.streams.info(name).catch((error: unknown) => {
    if (!(error instanceof Error && 'code' in error && error.code === streamNotFound)) throw error
    throw new SinkUnavailableError(`NATS has no stream ${name}; create it, or correct the option stream`, {
      cause: error,
    })
  })
  return {
    name,
    subjects: config.subjects ?? [],
    maxMessageBytes: config.max_msg_size > 0 ? config.max_msg_size : undefined,
    duplicateWindowMs: config.duplicate_window / 1_000_000,
  }
}

/**
 * A stream that forgot an id before the same page could come again would hold the event twice, and one that captures
 * nothing of a fixed subject would take no event at all. Both are for the operator to put right, and everything waits.
 */
export function requireUsable(
  stream: NatsStream,
  worstRetryMs: number,
  fixedSubject: string | undefined,
): void {
  const { name, duplicateWindowMs, subjects } = stream
  if (duplicateWindowMs < worstRetryMs) {
    const seconds = Math.ceil(worstRetryMs / 1000)
    throw new SinkUnavailableError(
      `stream ${name} recognises a repeat for ${duplicateWindowMs / 1000} s, but a page may come again after ${worstRetryMs / 1000} s; set its duplicate_window to at least ${seconds} s (nats stream edit ${name} --dupe-window ${seconds}s)`,
    )
  }
  if (subjects.length === 0) {
    throw new SinkUnavailableError(
      `stream ${name} has no subjects, so nothing can be published to it; name a stream that is no mirror`,
    )
  }
  if (fixedSubject !== undefined && !captures(stream, fixedSubject)) {
    throw new SinkUnavailableError(
      `stream ${name} does not capture subject ${fixedSubject}; add it to the stream's subjects or correct the option subject`,
    )
  }
}

export function captures({ subjects }: NatsStream, subject: string): boolean {
  return subjects.some((filter) => matches(filter, subject))
}

/** `*` stands for one token, `>` at the end for one or more. */
function matches(filter: string, subject: string): boolean {
  const wanted = filter.split('.')
  const tokens = subject.split('.')
  const open = wanted.at(-1) === '>'
  if (open ? tokens.length < wanted.length : tokens.length !== wanted.length) return false
  return wanted.every((token, i) => token === '*' || (open && i === wanted.length - 1) || token === tokens[i])
}

/** Whether something may be published to it: no wildcards, no empty tokens, no white space. */
export function isPublishable(subject: string): boolean {
  return subject.split('.').every((token) => !['', '*', '>'].includes(token) && !/[\s\0]/.test(token))
}
