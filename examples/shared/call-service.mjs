import { UnrecoverableError } from 'bullmq'

const patienceMs = Number(process.env.SERVICE_PATIENCE_MS ?? 3_000)

/**
 * One request to a service, with the key that makes its repetition harmless. Whatever is not an answer (a time-out, a
 * 500, a lost connection) says nothing about whether the service did it, so the job throws and lets Holdfast decide.
 */
export async function callService(url, { method = 'POST', key, body = {}, signal }) {
  const patience = new AbortController()
  // Within AbortSignal.any nothing holds an AbortSignal.timeout, and collected as garbage it never fires.
  const timer = setTimeout(() => patience.abort(new Error(`no answer within ${patienceMs} ms`)), patienceMs)
  const request = {
    method,
    headers: { 'content-type': 'application/json', 'idempotency-key': key },
    body: JSON.stringify(body),
    signal: AbortSignal.any([signal, patience.signal]),
  }
  const response = await fetch(url, request).finally(() => clearTimeout(timer))
  // No attempt after this one would go better: the job fails, and what it staged is rolled back.
  if (response.status === 402) throw new UnrecoverableError(`${url} refused`)
  if (!response.ok) throw new Error(`${url} answered ${response.status}`)
}
