import { expect, it } from 'vitest'
import { InvalidConfigError } from '../../../src/db/errors.ts'
import { optionalPeer } from '../../../src/jobs/sinks/optional-peer.ts'

it('says what to install when a client library is missing', async () => {
  const missing: string = 'a-client-that-nobody-installed'
  const loading = optionalPeer(
    'nats',
    ['@nats-io/jetstream', '@nats-io/transport-node'],
    () => import(missing),
  )
  await expect(loading).rejects.toThrow(InvalidConfigError)
  await expect(loading).rejects.toThrow('npm install @nats-io/jetstream @nats-io/transport-node')
})

it('passes on what goes wrong inside of a library that is there', async () => {
  const broken = new SyntaxError('broken')
  await expect(optionalPeer('nats', ['x'], () => Promise.reject(broken))).rejects.toBe(broken)
})
