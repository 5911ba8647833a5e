import type { JobContext } from '../../src/jobs/context.ts'
import { bullmq } from '../../src/jobs/sinks/bullmq.ts'
import { nats } from '../../src/jobs/sinks/nats.ts'
import { rabbitmq } from '../../src/jobs/sinks/rabbitmq.ts'
import { redisStream } from '../../src/jobs/sinks/redis-stream.ts'
import type { Sink } from '../../src/jobs/sinks/sink.ts'
import { sinkContext } from '../../src/jobs/sinks/sink-context.ts'
import { webhook } from '../../src/jobs/sinks/webhook.ts'
import { Relays } from './relays.ts'

/** A sink and where it leads, as it can be told to another process. */
export type SinkSpec =
  | { kind: 'nats'; servers: string; stream: string }
  | { kind: 'rabbitmq'; url: string; queue: string }
  | { kind: 'webhook'; url: string; secret: string }
  | { kind: 'bullmq'; url: string; queue: string }
  | { kind: 'redis-cluster'; urls: string[]; stream: string }

function sinkOf(spec: SinkSpec): Sink {
  switch (spec.kind) {
    case 'nats':
      return nats({ servers: spec.servers, stream: spec.stream, subject: `${spec.stream}.events` })
    case 'rabbitmq':
      return rabbitmq({ url: spec.url, exchange: '', routingKey: spec.queue })
    case 'webhook':
      return webhook({ url: spec.url, secret: spec.secret })
    case 'bullmq':
      return bullmq({ url: spec.url, queue: spec.queue })
    case 'redis-cluster':
      return redisStream({ url: spec.urls, stream: spec.stream })
  }
}

/** Relays once, all shards, pages of ten; returns the outcome. */
export async function drainInto(ctx: JobContext, spec: SinkSpec): Promise<string> {
  const open = await sinkOf(spec).open(sinkContext(ctx, 'sink'))
  try {
    const relays = new Relays(ctx, open, { sink: 'sink', pageSize: 10, wants: () => true })
    return await relays.drainToEnd(new AbortController().signal)
  } finally {
    await open.close()
  }
}
