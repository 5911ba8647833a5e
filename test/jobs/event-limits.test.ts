import { describe, expect, it } from 'vitest'
import { InvalidPayloadError } from '../../src/db/errors.ts'
import { appendEvents } from '../../src/db/outbox.ts'
import { eventLimits } from '../../src/jobs/event-limits.ts'

const sinks = new Map<string, { maxEventBytes?: number }>([
  ['stream', {}],
  ['small', { maxEventBytes: 500 }],
  ['smaller', { maxEventBytes: 400 }],
])
const routes = [
  { type: 'order.*', to: ['stream', 'small'] },
  { type: 'order.placed', to: ['smaller'] },
]

/** Takes the statement as a node-postgres client would, and keeps nothing. */
function client() {
  const sent: unknown[] = []
  return { sent, query: async (_text: string, values: unknown[]) => sent.push(values) }
}

describe('the limit of an event', () => {
  it('is that of the pickiest sink it is routed to', () => {
    const limitOf = eventLimits(sinks, routes)
    expect(limitOf('order.placed')).toMatchObject({ sink: 'smaller', bytes: 400 })
    expect(limitOf('order.gone')).toMatchObject({ sink: 'small', bytes: 500 })
    expect(limitOf('other')).toBe(undefined)
    expect(eventLimits(sinks, undefined)('other')).toMatchObject({ sink: 'smaller' })
  })

  it('is checked to the byte when it is published, and nothing is sent that would not be taken', async () => {
    const probe = client()
    const event = (text: string) => ({
      type: 'order.placed',
      id: '0198f0a0-0000-7000-8000-000000000000',
      data: text,
    })
    await appendEvents(probe, event(''))
    const empty = Buffer.byteLength((JSON.parse(JSON.stringify(probe.sent)) as string[][])[0]?.[0] ?? '') - 2
    const limitOf = () => ({ sink: 'smaller', bytes: empty + 6 })
    const fits = client()
    // Three characters of two bytes each.
    await appendEvents(fits, event('äöü'), limitOf)
    expect(fits.sent).toHaveLength(1)
    const refused = client()
    const publishing = appendEvents(refused, [event('äöü'), event('äöü!')], limitOf)
    await expect(publishing).rejects.toThrow(InvalidPayloadError)
    await expect(publishing).rejects.toThrow('the sink smaller')
    expect(refused.sent).toEqual([])
  })
})
