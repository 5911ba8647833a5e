import { readdirSync, readFileSync } from 'node:fs'
import type { Databases, Participant, Sql } from './databases.ts'
import {
  InvalidConfigError,
  NotAllowedError,
  SchemaOutdatedError,
  SchemaTooNewError,
  TwoPhaseDisabledError,
} from './errors.ts'
import { isConnectionLoss, SQLSTATE, sqlstateOf } from './sqlstate.ts'
import { newOwnerId } from './transaction-name.ts'
import { within } from './within.ts'

/**
 * Migrations are numbered SQL files, each applied in a transaction of its own under an advisory transaction lock, so
 * that any number of processes may start at once: they queue at the lock, and each looks again under it. The first
 * line of a file says whether every participant gets it or the coordinator alone.
 */
type Migration = { version: number; name: string; text: string; coordinatorOnly: boolean }

/** The driver connects again and again where somebody accepts and closes; this is how long it may. */
const reachMs = 15_000

/** The advisory lock key of Holdfast's migrations: the ASCII codes of "HFmigr8". */
const lockKey = '20343374116026936'

const folder = new URL('./migrations/', import.meta.url)

const migrations: readonly Migration[] = readdirSync(folder)
  .filter((file) => file.endsWith('.sql'))
  .toSorted()
  .map((file) => {
    const text = readFileSync(new URL(file, folder), 'utf8')
    const scope = /^-- applies to: (every participant|the coordinator)\n/.exec(text)?.[1]
    if (!scope) throw new Error(`migration ${file} does not say what it applies to`)
    return {
      version: Number(file.slice(0, 4)),
      name: file.slice(5, -4),
      text,
      coordinatorOnly: scope === 'the coordinator',
    }
  })

export type Installation = { id: string; namespace: string | null }

const rolesText = readFileSync(new URL('./roles.sql', import.meta.url), 'utf8')

/**
 * Brings every database to this code's schema and records the installation in each. Returns what was applied. With
 * `roles`, or where they were installed before, the role model as well (src/db/roles.sql); that needs CREATEROLE.
 */
export async function migrate(
  databases: Databases,
  namespace?: string,
  { roles = false } = {},
): Promise<{ applied: string[] }> {
  const applied = await migrateOne(databases.primary, true)
  const installation = await recordCoordinator(databases.primary.sql, namespace)
  for (const participant of databases.all) {
    await checkTwoPhaseEnabled(participant)
    if (participant === databases.primary) continue
    applied.push(...(await migrateOne(participant, false)))
    await participant.sql`
      insert into holdfast.installation (id, coordinator, participant, namespace)
      values (${installation.id}, false, ${participant.name}, ${installation.namespace}) on conflict (id) do nothing`
    await checkParticipant(participant, installation.id)
  }
  for (const participant of databases.all) {
    // Again each time: what a migration or an upgrade of the queues added gets its grants.
    if (roles || (await readOwnerRole(participant, installation.id)) !== null) await installRoles(participant)
  }
  return { applied }
}

async function installRoles(participant: Participant): Promise<void> {
  await participant.transaction(async (sql) => {
    await sql`select pg_advisory_xact_lock(${lockKey}::bigint)`
    await sql.unsafe(rolesText)
  })
}

async function migrateOne(participant: Participant, coordinator: boolean): Promise<string[]> {
  const missing = await missingMigrations(participant, coordinator)
  if (missing.length === 0) return []
  const applied: string[] = []
  await participant.transaction(async (sql) => {
    await sql`select pg_advisory_xact_lock(${lockKey}::bigint)`
    await sql`create schema if not exists holdfast`
    await sql`create table if not exists holdfast.schema_migrations (
      version integer primary key, name text not null, applied_at timestamptz not null default clock_timestamp())`
  })
  for (const migration of missing) {
    await participant.transaction(async (sql) => {
      await sql`select pg_advisory_xact_lock(${lockKey}::bigint)`
      const rows = await sql<{ version: number }[]>`select version from holdfast.schema_migrations`
      checkNotNewer(participant.name, rows)
      if (rows.some((row) => row.version === migration.version)) return
      await sql.unsafe(migration.text)
      await sql`insert into holdfast.schema_migrations (version, name) values (${migration.version}, ${migration.name})`
      applied.push(`${participant.name}: ${String(migration.version).padStart(4, '0')}-${migration.name}`)
    })
  }
  return applied
}

async function recordCoordinator(sql: Sql, namespace?: string): Promise<Installation> {
  await sql`
    insert into holdfast.installation (id, coordinator, participant, namespace)
    values (${newOwnerId()}, true, 'primary', ${namespace ?? null})
    on conflict (coordinator) where coordinator do nothing`
  return readInstallation(sql)
}

async function readInstallation(sql: Sql): Promise<Installation> {
  const [row] = await sql<Installation[]>`select id, namespace from holdfast.installation where coordinator`
  if (!row)
    throw new SchemaOutdatedError('the primary database records no installation; run `holdfast migrate`')
  return row
}

/**
 * Checks every database's schema and two-phase setting without changing anything; returns the installation. A database
 * other than the primary that cannot be reached keeps nobody from working on the others.
 */
export async function checkSchema(databases: Databases): Promise<Installation> {
  await checkVersions(databases.primary)
  const installation = await readInstallation(databases.primary.sql)
  for (const participant of databases.all) {
    try {
      await within(reachMs, `reaching ${participant.name}`, ensureChecked(participant, installation.id))
    } catch (error) {
      if (participant === databases.primary || !isConnectionLoss(error)) throw error
    }
  }
  return installation
}

/**
 * Checks a participant unless that was done: one that could not be reached at the start is checked before anything is
 * staged on it, and by recovery.
 */
export async function ensureChecked(participant: Participant, installation: string): Promise<void> {
  if (participant.checked) return
  await checkVersions(participant)
  await checkTwoPhaseEnabled(participant)
  await checkParticipant(participant, installation)
  await takeOwnerRole(participant, installation)
  participant.checked = true
}

async function checkVersions(participant: Participant): Promise<void> {
  const coordinator = participant.name === 'primary'
  const missing = await missingMigrations(participant, coordinator)
  if (missing.length > 0) {
    throw new SchemaOutdatedError(
      `database ${participant.name} lacks ${missing.length} of ${migrationsFor(coordinator).length} migrations (first: ${missing[0]?.name}); run \`holdfast migrate\`, or pass migrate: true`,
    )
  }
}

async function missingMigrations(participant: Participant, coordinator: boolean): Promise<Migration[]> {
  const rows = await appliedVersions(participant)
  checkNotNewer(participant.name, rows)
  return migrationsFor(coordinator).filter(({ version }) => !rows.some((row) => row.version === version))
}

async function readOwnerRole(participant: Participant, installation: string): Promise<string | null> {
  const [row] = await participant.sql<{ role: string | null }[]>`
    select owner_role as role from holdfast.installation where id = ${installation}`
  return row?.role ?? null
}

/** Every gid belongs to the owner role; a login that cannot become it could stage what nobody else may finish. */
async function takeOwnerRole(participant: Participant, installation: string): Promise<void> {
  const role = await readOwnerRole(participant, installation)
  participant.ownerRole = role ?? undefined
  if (role === null) return
  // Since PostgreSQL 16 a membership may be one that does not allow SET ROLE.
  const [row] = await participant.sql<{ member: boolean }[]>`
    select to_regrole(${role}) is not null and pg_has_role(session_user, to_regrole(${role}),
      case when current_setting('server_version_num')::int >= 160000 then 'set' else 'member' end) as member`
  if (row?.member !== true)
    throw await notAllowed(
      participant,
      `may not become ${role}, which owns the prepared transactions of this installation`,
    )
}

async function notAllowed(participant: Participant, what: string, cause?: unknown): Promise<NotAllowedError> {
  const [row] = await participant.sql<{ login: string }[]>`select quote_ident(session_user) as login`
  const login = row?.login ?? ''
  return new NotAllowedError(
    `the login ${login} of database ${participant.name} ${what}: GRANT holdfast_app TO ${login} (an operator: holdfast_operator). \`holdfast migrate --roles\` makes these roles`,
    { cause },
  )
}

/** A database answers to one name alone: behind two, its gids and markers would be taken for two participants'. */
async function checkParticipant(participant: Participant, installation: string): Promise<void> {
  const [row] = await participant.sql<{ participant: string }[]>`
    select participant from holdfast.installation where id = ${installation}`
  if (!row) {
    throw new SchemaOutdatedError(
      `database ${participant.name} does not take part in this installation yet; run \`holdfast migrate\`, or pass migrate: true`,
    )
  }
  if (row.participant !== participant.name) {
    throw new InvalidConfigError([
      `databases.${participant.name}: this database takes part as ${row.participant} already; two names for one database, or two URLs mixed up?`,
    ])
  }
}

async function appliedVersions(participant: Participant): Promise<readonly { version: number }[]> {
  try {
    return await participant.sql<{ version: number }[]>`select version from holdfast.schema_migrations`
  } catch (error) {
    const state = sqlstateOf(error)
    if (state === SQLSTATE.undefinedTable || state === SQLSTATE.invalidSchemaName) return []
    if (state === SQLSTATE.insufficientPrivilege)
      throw await notAllowed(participant, 'may not read the schema holdfast', error)
    throw error
  }
}

function migrationsFor(coordinator: boolean): readonly Migration[] {
  return migrations.filter((m) => coordinator || !m.coordinatorOnly)
}

function checkNotNewer(name: string, rows: readonly { version: number }[]): void {
  const newest = Math.max(0, ...rows.map((row) => row.version))
  const known = migrations.at(-1)?.version ?? 0
  if (newest > known) {
    throw new SchemaTooNewError(
      `database ${name} is at schema version ${newest}, this Holdfast knows up to ${known}: a newer Holdfast migrated it; upgrade this one`,
    )
  }
}

async function checkTwoPhaseEnabled(participant: Participant): Promise<void> {
  const [row] = await participant.sql<
    { slots: string }[]
  >`select current_setting('max_prepared_transactions') as slots`
  if (row?.slots === '0') throw twoPhaseDisabled(participant.name)
}

export function twoPhaseDisabled(name: string, cause?: unknown): TwoPhaseDisabledError {
  return new TwoPhaseDisabledError(
    `the server of database ${name} runs with max_prepared_transactions = 0, so nothing can be prepared. Set max_prepared_transactions = 100 (postgresql.conf, or ALTER SYSTEM SET) and restart the server: a reload is not enough`,
    { cause },
  )
}
