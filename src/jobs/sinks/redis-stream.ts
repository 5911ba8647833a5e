import { FencedError, InvalidConfigError, SinkUnavailableError } from '../../db/errors.ts'
import { messageOf } from '../../db/message-of.ts'
import type { OutboxEvent } from '../../db/outbox-event.ts'
import { policyOf } from './define-sink.ts'
import { connectRedis, type RedisConnection } from './redis-connection.ts'
import { type EncodedArguments, encodeArguments } from './redis-script-call.ts'
import { type AppendReply, appendScript } from './redis-stream-script.ts'
import { problemsOfUrls, type RedisUrls } from './redis-urls.ts'
import { ReusedBuffers } from './reused-buffers.ts'
import {
  type OpenSink,
  type Page,
  type Published,
  type Rejection,
  type Sink,
  type SinkPolicy,
} from './sink.ts'

export type RedisStreamOptions = SinkPolicy & {
  /** redis:// or rediss://, of one server; a list: of nodes of a cluster, through which the others are found */
  url: RedisUrls
  /** the stream's key; default `events` */
  stream?: string
  /** approximate length to keep (XADD MAXLEN ~); default unbounded */
  maxLength?: number
  /** the largest event, in bytes of its JSON; default 64 MiB, at most 512 MiB */
  maxEventBytes?: number
}

/**
 * While Redis takes an event in, it does nothing else for anybody: about a fifth of a second for 64 MiB. Above that the
 * producer should put the data elsewhere and send where it is. Redis' own limit is 512 MiB (proto-max-bulk-len).
 */
const defaultMaxEventBytes = 64 * 1024 ** 2
const redisMaxBytes = 512 * 1024 ** 2

/** For the same reason a page goes in parts of about this many UTF-16 units; it makes a difference to nothing else. */
const partLength = 4 * 1024 ** 2

/**
 * Delivers into a Redis stream, exactly once: the script that appends a page also remembers how far it came (see
 * `redis-stream-script.ts`), in a hash beside the stream that is never larger than a page. It refuses a lower xid (a zombie
 * relay), forgets on a new epoch and what is at or below the committed position, skips what it has, appends the rest. The
 * database was restored: a higher generation makes it forget everything.
 *
 * Holds as long as Redis keeps what it acknowledged: without persistence, or after a failover that lost writes, what
 * was lost together with its memory is not sent again.
 */
export function redisStream(options: RedisStreamOptions): Sink {
  const { url, stream = 'events', maxLength = 0, maxEventBytes = defaultMaxEventBytes } = options
  const problems = problemsOf({ url, stream, maxLength, maxEventBytes })
  if (problems.length > 0) throw new InvalidConfigError(problems.map((problem) => `redisStream: ${problem}`))
  return {
    guarantee:
      'exactly once, as long as Redis keeps what it acknowledged (noeviction, persistence, no lossy failover)',
    maxEventBytes,
    policy: policyOf(options),
    open: async ({ installation }) => {
      const redis = connectRedis(url)
      const buffers = new ReusedBuffers()
      const target = { stream, maxLength, memories: `${hashTagOf(stream)}:holdfast:${installation}`, buffers }
      return {
        encode: (events) => encode(events, buffers),
        publish: async (page) => append(redis, target, page),
        close: async () => redis.close(),
      } satisfies OpenSink
    },
  }
}

type Target = { stream: string; maxLength: number; memories: string; buffers: ReusedBuffers }

/** An error from one part leaves the parts before it taken and remembered; the page comes again as after any error. */
async function append(redis: RedisConnection, target: Target, page: Page): Promise<Published> {
  const { stream, maxLength, memories, buffers } = target
  const keys = [stream, `${memories}:${page.sink}:${page.shard}`]
  const byId = new Map<string, OutboxEvent>()
  const rejected: Rejection[] = []
  // Taken out of the page, so that it is sent once: the memory is used again then.
  const encoded = (page.encoded as Part[] | undefined)?.splice(0) ?? []
  for (const part of encoded.length > 0 ? encoded : encode(page.events, buffers)) {
    const closed = rejected.flatMap(({ event }) => event.partitionkey ?? [])
    const place = [maxLength, page.generation, page.epoch, page.position, page.xid, JSON.stringify(closed)]
    const [outcome, ...refused] = await run(redis, keys, [encodeArguments(place.map(String)), ...part])
    // Answered, so it was sent; after an error nobody knows, and the memory is left to the collector.
    buffers.giveBack(part[1].memory)
    if (outcome !== 'ok') throw refusalOf(page, outcome)
    if (refused.length > 0 && byId.size === 0) for (const event of page.events) byId.set(event.id, event)
    for (let i = 0; i + 1 < refused.length; i += 2) {
      const event = byId.get(refused[i] ?? '')
      if (event) rejected.push({ event, reason: refused[i + 1] ?? '' })
    }
  }
  return { rejected }
}

async function run(
  redis: RedisConnection,
  keys: readonly string[],
  args: EncodedArguments[],
): Promise<AppendReply> {
  try {
    return (await redis.run(appendScript, keys, ...args)) as AppendReply
  } catch (error) {
    throw new SinkUnavailableError(`Redis did not take the page: ${messageOf(error)}`, { cause: error })
  }
}

function refusalOf(page: Page, outcome: 'zombie' | 'past'): Error {
  const rebase = `run \`holdfast outbox rebase ${page.sink}\``
  return outcome === 'zombie'
    ? new FencedError(
        `a newer relay of ${page.sink} has published since; this page is void (if no other relay runs, the database went back in time: ${rebase})`,
      )
    : new SinkUnavailableError(
        `the sink ${page.sink} remembers a later epoch than ${page.epoch}: the database went back in time (restored?); ${rebase}`,
      )
}

/** The arguments that describe it, and its events. */
type Part = readonly [about: EncodedArguments, events: EncodedArguments]

function encode(events: readonly OutboxEvent[], buffers: ReusedBuffers): Part[] {
  const parts: Part[] = []
  for (let from = 0; from < events.length; ) {
    const texts: string[] = []
    let length = 0
    for (let i = from; i < events.length && length < partLength; i++) {
      const text = (events[i] as OutboxEvent).json
      texts.push(text)
      length += text.length
    }
    const part = events.slice(from, from + texts.length)
    from += texts.length
    const ids = part.map((event) => event.id)
    const keys = part.map((event) => event.partitionkey)
    parts.push([
      encodeArguments([ids[0] ?? '', ids.at(-1) ?? '', JSON.stringify(ids), JSON.stringify(keys)]),
      encodeArguments(texts, buffers.take(length + 16 * texts.length + 65_536)),
    ])
  }
  return parts
}

function problemsOf(options: Required<Omit<RedisStreamOptions, keyof SinkPolicy>>): string[] {
  const { url, stream, maxLength, maxEventBytes } = options
  const problems = problemsOfUrls(url)
  if (stream === '') problems.push('the stream needs a name')
  else if (tagIn(stream) === undefined && stream.includes('}'))
    problems.push('a stream whose name has a } needs a hash tag, {so}, for its memory to be on the same node')
  if (!Number.isSafeInteger(maxLength) || maxLength < 0)
    problems.push('maxLength is a whole number of entries')
  if (!Number.isSafeInteger(maxEventBytes) || maxEventBytes < 1 || maxEventBytes > redisMaxBytes)
    problems.push('maxEventBytes is a number of bytes from 1 to 536870912 (512 MiB)')
  return problems
}

/**
 * What decides the stream's slot in a cluster, as a hash tag, so that its memory is on the same node: what stands between
 * the first `{` and the next `}`, otherwise the whole name.
 */
function hashTagOf(stream: string): string {
  return `{${tagIn(stream) ?? stream}}`
}

function tagIn(stream: string): string | undefined {
  return /^[^{]*\{([^}]+)\}/.exec(stream)?.[1]
}
