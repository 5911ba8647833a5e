import type { Writable } from 'node:stream'
import { Command } from 'ioredis'

/** Arguments in Redis' protocol, ready to be sent: `$length\r\ntext\r\n` each. */
export type EncodedArguments = { count: number; bytes: Buffer; memory: Buffer }

export type Script = { text: string; sha1: string }

/**
 * A call of a script with arguments that are encoded already. They were while the page before was on its way, which the
 * client's own encoding cannot be, and thousands of arguments cost it twice as much.
 *
 * `args`, which the client puts into its errors and traces and finds the node by, are the script and its keys alone:
 * events reach no log.
 */
export class ScriptCall extends Command {
  readonly #head: Buffer
  readonly #last: Buffer

  constructor(script: Script, by: 'text' | 'sha1', keys: readonly string[], args: EncodedArguments[]) {
    const name = by === 'sha1' ? 'evalsha' : 'eval'
    const head = [name, script[by], String(keys.length), ...keys]
    super(name, [script.sha1, keys.length, ...keys], { replyEncoding: 'utf8' })
    const count = head.length + args.reduce((sum, { count: some }) => sum + some, 0)
    const [last] = args.slice(-1)
    this.#last = last?.bytes ?? Buffer.alloc(0)
    this.#head = Buffer.concat([
      Buffer.from(`*${count}\r\n`),
      encodeArguments(head).bytes,
      ...args.slice(0, -1).map(({ bytes }) => bytes),
    ])
  }

  /**
   * Goes out in two pieces: the events, which are the last arguments, would be copied to be one with the rest. So it cannot
   * be part of a pipeline, which the client writes as one.
   */
  override toWritable(socket: Writable): Buffer {
    socket.write(this.#head)
    return this.#last
  }
}

/** Above this many UTF-16 units a text's bytes are counted before they are written, below it room is made for the most. */
const countedFrom = 16_384

/** Into the buffer, or into a larger one when it is too small; that is the memory behind `bytes`. */
export function encodeArguments(
  texts: Iterable<string>,
  into: Buffer = Buffer.allocUnsafe(256),
): EncodedArguments {
  let bytes: Buffer = into
  let at = 0
  let count = 0
  for (const text of texts) {
    const most = text.length < countedFrom ? 3 * text.length : Buffer.byteLength(text)
    if (at + most + 16 > bytes.length) bytes = enlarge(bytes, at, at + most + 16)
    // Most texts are ASCII: as many bytes as units, so the length in front is known before they are written.
    let head = `$${text.length}\r\n`
    let written = bytes.write(text, at + head.length)
    if (written !== text.length) {
      head = `$${written}\r\n`
      written = bytes.write(text, at + head.length)
    }
    bytes.write(head, at, 'latin1')
    at += head.length + written
    bytes[at++] = 13
    bytes[at++] = 10
    count++
  }
  return { count, bytes: bytes.subarray(0, at), memory: bytes }
}

function enlarge(bytes: Buffer, used: number, needed: number): Buffer {
  const larger = Buffer.allocUnsafeSlow(Math.max(needed, 2 * bytes.length))
  bytes.copy(larger, 0, 0, used)
  return larger
}
