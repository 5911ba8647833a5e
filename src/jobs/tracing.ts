import { context, ROOT_CONTEXT, type Span, SpanStatusCode, trace } from '@opentelemetry/api'
import { messageOf } from '../db/message-of.ts'

/**
 * OpenTelemetry spans, through the API alone: without an SDK in the process they cost next to nothing. The begin's trace
 * context is kept with the attempt (W3C traceparent), so what other processes do to it joins the same trace.
 */
export type SpanName =
  | 'holdfast.begin'
  | 'holdfast.prepare'
  | 'holdfast.decide'
  | 'holdfast.commit'
  | 'holdfast.rollback'
  | 'holdfast.recover'
  | 'holdfast.effects'
  | 'holdfast.compensate'

export type Traced = { name: string; attempt?: string; participant?: string; traceparent?: string | null }

/** Runs `act` in a span: within the active one, or where there is none within the attempt's recorded trace. */
export async function traced<T>(
  spanName: SpanName,
  { name, attempt, participant, traceparent }: Traced,
  act: (traceparent: string | undefined) => Promise<T>,
): Promise<T> {
  const parent = trace.getActiveSpan() ? context.active() : contextOf(traceparent)
  const attributes = {
    'holdfast.transaction.name': name,
    ...(attempt === undefined ? {} : { 'holdfast.transaction.attempt': attempt }),
    ...(participant === undefined ? {} : { 'holdfast.participant': participant }),
  }
  const span = trace.getTracer('holdfast').startSpan(spanName, { attributes }, parent)
  return context.with(trace.setSpan(parent, span), async () => {
    try {
      return await act(traceparentOf(span) ?? traceparent ?? undefined)
    } catch (error) {
      span.recordException(error instanceof Error ? error : messageOf(error))
      span.setStatus({ code: SpanStatusCode.ERROR })
      throw error
    } finally {
      span.end()
    }
  })
}

/** `00-<trace id>-<span id>-<flags>` */
const pattern = /^00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$/

function contextOf(traceparent: string | null | undefined): typeof ROOT_CONTEXT {
  const [, traceId, spanId, flags] = pattern.exec(traceparent ?? '') ?? []
  if (traceId === undefined || spanId === undefined || flags === undefined) return context.active()
  return trace.setSpanContext(ROOT_CONTEXT, {
    traceId,
    spanId,
    traceFlags: Number.parseInt(flags, 16),
    isRemote: true,
  })
}

function traceparentOf(span: Span): string | undefined {
  const { traceId, spanId, traceFlags } = span.spanContext()
  const text = `00-${traceId}-${spanId}-${traceFlags.toString(16).padStart(2, '0')}`
  return /^0+$/.test(traceId) ? undefined : text
}
