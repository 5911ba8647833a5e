import { once } from 'node:events'
import { connect, createServer, type Server, type Socket } from 'node:net'

/**
 * A TCP proxy in front of one database that reads along which statements pass, by the frontend/backend protocol
 * (PostgreSQL manual, chapter 55), and cuts the connection at the one that it was armed for.
 *
 * A statement passes when it is about to run: as a simple query, or when a parsed statement is bound to its parameters
 * (drivers parse once and bind again and again).
 */
export type Statement = { text: string; parameters: readonly (string | null)[] }

/**
 * before: the server never gets the statement. after: the server ran it, its answer never reaches the client. at-once:
 * the statement is on its way when the client loses the connection; the server notices that after it ran it, or not.
 */
export type When = 'before' | 'after' | 'at-once'

type Strike = {
  /** `earlier`: what passed on this connection since the last BEGIN */
  match: (statement: Statement, earlier: readonly Statement[]) => boolean
  when: When
  /** how many connections are cut; default 1 */
  times?: number
}

type Armed = Pick<Strike, 'match' | 'when'> & { left: number; struck: () => void }

export class TcpProxy {
  /** the database's URL, through the proxy */
  readonly url: string
  readonly #server: Server
  readonly #target: { host: string; port: number }
  readonly #open = new Set<Socket>()
  #armed: Armed[] = []

  private constructor(server: Server, target: URL, port: number) {
    const url = new URL(target)
    url.hostname = '127.0.0.1'
    url.port = String(port)
    this.url = url.href
    this.#server = server
    this.#target = { host: target.hostname, port: Number(target.port) }
  }

  static async open(databaseUrl: string): Promise<TcpProxy> {
    const server = createServer({ noDelay: true })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const address = server.address()
    if (address === null || typeof address === 'string') throw new Error('no port')
    const proxy = new TcpProxy(server, new URL(databaseUrl), address.port)
    server.on('connection', (client) => proxy.#join(client))
    return proxy
  }

  /** Resolves when it has struck for the last time. */
  arm({ match, when, times = 1 }: Strike): Promise<void> {
    return new Promise((resolve) => {
      this.#armed.push({ match, when, left: times, struck: resolve })
    })
  }

  disarm(): void {
    this.#armed = []
  }

  async close(): Promise<void> {
    this.#server.close()
    for (const socket of this.#open) socket.destroy()
    await once(this.#server, 'close')
  }

  #join(client: Socket): void {
    const server = connect({ ...this.#target, noDelay: true })
    for (const socket of [client, server]) {
      this.#open.add(socket)
      // The close that follows an error says all that matters.
      socket.on('error', () => undefined)
      socket.on('close', () => this.#open.delete(socket))
    }
    client.on('close', () => server.end())
    server.on('close', () => client.end())
    watch(client, server, (statement, earlier) => this.#strikes(statement, earlier))
  }

  #strikes(
    statement: Statement,
    earlier: readonly Statement[],
  ): { when: When; struck: () => void } | undefined {
    const hit = this.#armed.find((armed) => armed.match(statement, earlier))
    if (!hit) return undefined
    hit.left--
    if (hit.left === 0) this.#armed = this.#armed.filter((armed) => armed !== hit)
    return { when: hit.when, struck: hit.left === 0 ? hit.struck : () => undefined }
  }
}

type Find = (
  statement: Statement,
  earlier: readonly Statement[],
) => { when: When; struck: () => void } | undefined

function watch(client: Socket, server: Socket, find: Find): void {
  const passage = new Passage(client, server, find)
  client.on('data', (chunk) => passage.fromClient(chunk))
  server.on('data', (chunk) => passage.fromServer(chunk))
}

/** One client's connection. */
class Passage {
  readonly #client: Socket
  readonly #server: Socket
  readonly #find: Find
  readonly #clientMessages = new Messages('untyped')
  readonly #serverMessages = new Messages('typed')
  readonly #parsed = new Map<string, string>()
  #earlier: Statement[] = []
  /** messages that the server answers with ReadyForQuery, the start-up being the first, and how many it has answered */
  #asked = 1
  #answered = 0
  /** set when the connection is to be cut at the end of the statement that is passing */
  #hit: { when: When; struck: () => void } | undefined
  /** set when the answer with this number is not to reach the client */
  #swallow: number | undefined

  constructor(client: Socket, server: Socket, find: Find) {
    this.#client = client
    this.#server = server
    this.#find = find
  }

  fromClient(chunk: Buffer | string): void {
    for (const message of this.#clientMessages.split(chunk)) {
      if (this.#client.destroyed || this.#swallow !== undefined) return
      this.#fromClient(message)
    }
  }

  fromServer(chunk: Buffer | string): void {
    for (const message of this.#serverMessages.split(chunk)) this.#fromServer(message)
  }

  #fromClient(message: Message): void {
    if (message.type === 'P') this.#parse(message.body)
    this.#hit ??= this.#look(message)
    if (this.#hit?.when === 'before') {
      this.#cut()
      return
    }
    this.#server.write(message.raw)
    if (message.type !== 'Q' && message.type !== 'S') return
    this.#asked++
    if (this.#hit?.when === 'after') this.#swallow = this.#asked
    if (this.#hit?.when === 'at-once') this.#cut()
  }

  #fromServer(message: Message): void {
    if (this.#swallow !== this.#answered + 1 && !this.#client.destroyed) this.#client.write(message.raw)
    if (message.type !== 'Z') return
    this.#answered++
    if (this.#answered === this.#swallow) this.#cut()
  }

  #cut(): void {
    // A reset and an end are told apart by the client: it sees an error with the one, none with the other.
    if (this.#hit?.when === 'at-once') this.#client.resetAndDestroy()
    else this.#client.destroy()
    this.#server.end()
    this.#hit?.struck()
  }

  #parse(body: Buffer): void {
    const [name, text] = cstrings(body, 2)
    this.#parsed.set(name ?? '', text ?? '')
  }

  #look(message: Message): { when: When; struck: () => void } | undefined {
    const statement = this.#statementOf(message)
    if (!statement) return undefined
    if (/^begin\b/i.test(statement.text)) this.#earlier = []
    const hit = this.#find(statement, this.#earlier)
    this.#earlier.push(statement)
    return hit
  }

  #statementOf({ type, body }: Message): Statement | undefined {
    if (type === 'Q') return { text: cstrings(body, 1)[0] ?? '', parameters: [] }
    if (type !== 'B') return undefined
    const [portal = '', name = ''] = cstrings(body, 2)
    const start = Buffer.byteLength(portal) + Buffer.byteLength(name) + 2
    return { text: this.#parsed.get(name) ?? '', parameters: parametersOf(body, start) }
  }
}

type Message = { type: string; body: Buffer; raw: Buffer }

/** Cuts a stream into messages. The client's first one, the start-up packet, has no type; the driver asks for no TLS. */
class Messages {
  #rest = Buffer.alloc(0)
  #typed: boolean

  constructor(first: 'typed' | 'untyped') {
    this.#typed = first === 'typed'
  }

  *split(chunk: Buffer | string): Generator<Message> {
    this.#rest = Buffer.concat([this.#rest, Buffer.from(chunk)])
    for (;;) {
      const head = this.#typed ? 1 : 0
      if (this.#rest.length < head + 4) return
      const end = head + this.#rest.readUInt32BE(head)
      if (this.#rest.length < end) return
      const raw = this.#rest.subarray(0, end)
      const type = this.#typed ? String.fromCharCode(raw[0] ?? 0) : ''
      this.#rest = this.#rest.subarray(end)
      this.#typed = true
      yield { type, body: raw.subarray(head + 4), raw }
    }
  }
}

function cstrings(body: Buffer, count: number): string[] {
  const texts: string[] = []
  for (let start = 0; texts.length < count; ) {
    const end = body.indexOf(0, start)
    texts.push(body.toString('utf8', start, end))
    start = end + 1
  }
  return texts
}

/** The parameters of a Bind message, from where its formats begin; all that matters here is sent as text. */
function parametersOf(body: Buffer, start: number): (string | null)[] {
  let at = start + 2 + 2 * body.readInt16BE(start)
  const parameters: (string | null)[] = []
  const count = body.readInt16BE(at)
  at += 2
  while (parameters.length < count) {
    const length = body.readInt32BE(at)
    at += 4
    parameters.push(length < 0 ? null : body.toString('utf8', at, at + length))
    at += Math.max(0, length)
  }
  return parameters
}
