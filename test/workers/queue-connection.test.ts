import { describe, expect, it } from 'vitest'
import { InvalidConfigError } from '../../src/db/errors.ts'
import { onDatabase } from '../../src/workers/queue-connection.ts'

describe('the connection of queues on PostgreSQL', () => {
  it('is made by the URL without `options`, and with its TLS', () => {
    const url = 'postgres://u:p@localhost:5433/shop'
    const query = 'application_name=shop&options=-c%20x=1'
    expect(onDatabase(`${url}?${query}&sslmode=require\n`)).toEqual({
      connectionString: `${url}?application_name=shop`,
      ssl: { rejectUnauthorized: false },
    })
  })

  it('is refused where the URL has several hosts', () => {
    expect(() => onDatabase('postgres://a:1,b:2/shop?sslmode=disable')).toThrow(InvalidConfigError)
  })
})
