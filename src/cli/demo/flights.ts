import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import type { Sql } from '../../db/databases.ts'
import { HoldfastError } from '../../db/errors.ts'
import { defineBatch } from '../../jobs/batch-definition.ts'
import { keyset } from '../../jobs/keyset.ts'

/** The demo's input is not there. */
class DemoInputError extends HoldfastError {
  readonly code = 'HOLDFAST_DEMO_INPUT'
}

/** A row of flights-200k.json: minutes late, miles, hours since midnight. */
type RawFlight = { delay: number; distance: number; time: number }

/** The 231,083 real flights of the npm package vega-datasets 2.9.0. */
export function readFlights(): RawFlight[] {
  let file: string
  try {
    file = createRequire(import.meta.url).resolve('vega-datasets/data/flights-200k.json')
  } catch (error) {
    throw new DemoInputError(
      'the demo imports the real flights of the npm package vega-datasets 2.9.0, which is a development dependency of this repository and not installed here. Run it in a clone of the repository (npm ci), or: npm install --save-dev vega-datasets@2.9.0',
      { cause: error },
    )
  }
  return JSON.parse(readFileSync(file, 'utf8')) as RawFlight[]
}

/** Creates source and target table and loads the source, numbering the rows since they have no key. */
export async function loadFlights(sql: Sql, flights: readonly RawFlight[]): Promise<void> {
  await sql`create table raw_flights (
    id integer primary key, delay integer not null, distance integer not null, time double precision not null)`
  // No key on purpose: a flight that was imported twice has to be countable.
  await sql`create table flights (
    flight_id integer not null, departs time not null, delay_minutes integer not null, distance_km integer not null)`
  const perInsert = 20_000
  for (let i = 0; i < flights.length; i += perInsert) {
    const rows = flights.slice(i, i + perInsert).map((flight, k) => ({ id: i + k + 1, ...flight }))
    await sql`
      insert into raw_flights (id, delay, distance, time)
      select id, delay, distance, time from jsonb_to_recordset(${JSON.stringify(rows)}::text::jsonb)
        as r(id integer, delay integer, distance integer, time double precision)`
  }
  await sql`analyze raw_flights`
}

/** Writes the normalised flights of a chunk and publishes one event for each. */
export const importFlights = defineBatch({
  name: 'import-flights',
  source: keyset<RawFlight & { id: number }>({ table: 'raw_flights', key: ['id'] }),
  chunkSize: 1_000,
  async process(rows, { tx, publish }) {
    const flights = rows.map((row) => ({
      flight_id: row.id,
      departs: clockTime(row.time),
      delay_minutes: row.delay,
      distance_km: Math.round(row.distance * 1.609344),
    }))
    await tx`
      insert into flights (flight_id, departs, delay_minutes, distance_km)
      select flight_id, departs, delay_minutes, distance_km
      from jsonb_to_recordset(${JSON.stringify(flights)}::text::jsonb)
        as f(flight_id integer, departs time, delay_minutes integer, distance_km integer)`
    await publish(
      flights.map((flight) => ({
        type: 'flight.imported',
        subject: `flight-${flight.flight_id}`,
        data: flight,
      })),
    )
  },
})

function clockTime(hours: number): string {
  const minutes = Math.round(hours * 60) % 1_440
  return `${String(Math.floor(minutes / 60)).padStart(2, '0')}:${String(minutes % 60).padStart(2, '0')}`
}
