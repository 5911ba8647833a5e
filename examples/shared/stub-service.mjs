import { EventEmitter, once } from 'node:events'
import { createServer } from 'node:http'
import { setTimeout as pause } from 'node:timers/promises'

/**
 * A service over HTTP, with a ledger of what it did and faults that strike once each:
 *
 *   POST   /charges        does something for the body's `subject`, under the Idempotency-Key
 *   DELETE /charges/<key>  takes back what was done under that key
 *
 * Both may be repeated, which is what Holdfast asks of whatever is called between stage and commit. A key that was taken
 * back before it was used stays refused: a request that is late must not be done after its refund.
 *
 * `faults` has `{ 'charges order-1': fault }`, for the taking back `{ 'undo charges order-1': fault }`:
 *   error-before  500, nothing done          time-out  done, and no answer ever
 *   error-after   500, done all the same     slow      done, answered after a while
 *   refuse        402, every time
 */
export async function startService(faults = {}) {
  const ledger = new Map()
  const struck = new Set()
  const events = new EventEmitter()

  async function answer(request) {
    const [, kind, keyInPath] = request.url.split('/').map(decodeURIComponent)
    const undo = request.method === 'DELETE'
    const body = JSON.parse((await text(request)) || '{}')
    const key = undo ? keyInPath : request.headers['idempotency-key']
    if (!key) return 400
    const known = ledger.get(`${kind} ${key}`)
    const what = `${undo ? 'undo ' : ''}${kind} ${body.subject ?? known?.subject}`
    const fault = struck.has(what) && faults[what] !== 'refuse' ? undefined : faults[what]
    struck.add(what)
    if (fault === 'error-before') return 500
    if (fault === 'refuse') return 402
    if (!undo && known?.undone) return 409
    const entry = known ?? { kind, key, ...body, undone: undo }
    if (undo) entry.undone = true
    ledger.set(`${kind} ${key}`, entry)
    events.emit(what)
    if (fault === 'error-after') return 500
    if (fault === 'slow') await pause(400)
    return fault === 'time-out' ? undefined : 200
  }

  const server = createServer((request, response) => {
    void answer(request)
      // A client that is killed in the middle of its request is no error of the service.
      .catch(() => 400)
      .then((status) => status !== undefined && response.writeHead(status).end())
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    ledger: () => [...ledger.values()],
    /** Resolves when the service has done this the next time, before it answers. */
    done: (what) => once(events, what),
    close() {
      server.closeAllConnections()
      server.close()
    },
  }
}

async function text(request) {
  const chunks = []
  for await (const chunk of request) chunks.push(chunk)
  return Buffer.concat(chunks).toString()
}
