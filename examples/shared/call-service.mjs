import { UnrecoverableError } from 'bullmq'

const patienceMs = 3_000

/**
 * One request to a service, with the key that makes its repetition harmless. Whatever is not an answer (a time-out, a
 * 500, a lost connection) says nothing about whether the service did it, so the job throws and lets Holdfast decide.
 */
export async function callService(url, { method = 'POST', key, body = {}, signal }) {
  const request = {
    method,
    headers: { 'content-type': 'application/json', 'idempotency-key': key },
    body: JSON.stringify(body),
    signal: AbortSignal.any([signal, AbortSignal.timeout(patienceMs)]),
  }
  const response = await fetch(url, request)
  // No attempt after this one would go better: the job fails, and what it staged is rolled back.
  if (response.status === 402) throw new UnrecoverableError(`${url} refused`)
  if (!response.ok) throw new Error(`${url} answered ${response.status}`)
}
