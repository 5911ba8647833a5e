import { execFile } from 'node:child_process'
import { mkdtemp, readFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { join } from 'node:path'
import { createServer } from 'node:tls'
import { promisify } from 'node:util'
import { inject, onTestFinished } from 'vitest'
import { findProgram, leftOut } from './broker-process.ts'

/** Undefined, and told loudly, where there is no openssl. */
export const openssl = findProgram('openssl') ?? leftOut('openssl')

/** PEM files: the certificate is its own CA. */
export type Certificate = { cert: string; key: string }

/** Of the host `localhost`, and of no address; for some days. */
export async function createCertificate(): Promise<Certificate> {
  const dir = await mkdtemp(join(inject('folder'), 'certificate-'))
  const [cert, key] = [join(dir, 'cert.pem'), join(dir, 'key.pem')]
  const names = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost']
  const made = ['-newkey', 'rsa:2048', '-nodes', '-days', '2', '-keyout', key, '-out', cert]
  await promisify(execFile)(openssl ?? 'openssl', ['req', '-x509', ...made, ...names])
  return { cert, key }
}

/** The server at a port of the loopback interface, over TLS: returns the port, until the test has ended. */
export async function overTls({ cert, key }: Certificate, port: number): Promise<number> {
  const server = createServer({ cert: await readFile(cert), key: await readFile(key) }, (socket) => {
    const behind = connect(port, '127.0.0.1')
    socket.pipe(behind).pipe(socket)
    // One that ends takes the other with it.
    for (const [one, other] of [
      [socket, behind],
      [behind, socket],
    ] as const)
      one.on('error', () => other.destroy()).on('close', () => other.destroy())
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => {
    server.close()
  })
  return (server.address() as { port: number }).port
}
