import { lchown, readdir, readFile, stat } from 'node:fs/promises'
import path from 'node:path'
import { EmbeddedServerError } from '../errors.ts'
import { runBinary } from './run-binary.ts'

/** As whom PostgreSQL's programs run. PostgreSQL refuses to run as root. */
export type Account = {
  name: string
  /** put in front of each command */
  wrapper: readonly string[]
  /** the user to switch to, when the wrapper does not */
  ids?: { uid: number; gid: number }
}

const itself: Account = { name: 'the current user', wrapper: [] }

/**
 * Root in a user namespace where it has another number: to the outside its files stay root's, so it reaches every
 * folder that root owns, and no user has to exist. It has none of root's capabilities.
 */
const namespaced: Account = {
  name: 'root in a user namespace (unshare)',
  wrapper: ['unshare', '--user', '--map-user=65534', '--map-group=65534', '--'],
}

/**
 * Chooses the account for the server whose data is (or will be) `dataDir`, inside the existing folder `dir`. An
 * existing data folder stays with its owner; otherwise the first account that can reach the folder and the binaries.
 */
export async function chooseAccount(dir: string, dataDir: string, postgres: string): Promise<Account> {
  if (process.getuid?.() !== 0) return itself
  const failures: string[] = []
  for (const account of await candidates(dir, dataDir)) {
    const failure = await whyUnable(account, await folderToEnter(account, dir), postgres)
    if (failure === undefined) return account
    failures.push(`as ${account.name}: ${failure}`)
  }
  throw new EmbeddedServerError(
    `PostgreSQL refuses to run as root, and no other account can run it in ${dir}:\n` +
      `${failures.map((failure) => `  - ${failure}`).join('\n')}\n` +
      'Start as an ordinary user, use a folder that such a user can enter, or set DATABASE_URL.',
  )
}

/** Gives a file that Node made to the account that has to read or write it. */
export async function giveTo(account: Account, file: string): Promise<void> {
  if (account.ids !== undefined) await lchown(file, account.ids.uid, account.ids.gid)
}

async function candidates(dir: string, dataDir: string): Promise<Account[]> {
  const dataOwner = await ownerOf(dataDir)
  if (dataOwner !== undefined && dataOwner.uid !== 0) return [switched('the owner of the data', dataOwner)]
  const folderOwners = [await ownerOf(dir), await ownerOf(path.dirname(dir))]
  return [
    namespaced,
    ...folderOwners.flatMap((owner) =>
      owner === undefined || owner.uid === 0 ? [] : [switched('the owner of the folder', owner)],
    ),
    ...(await systemUsers()),
  ]
}

async function systemUsers(): Promise<Account[]> {
  const lines = (await readFile('/etc/passwd', 'utf8').catch(() => '')).split('\n')
  return ['postgres', 'nobody'].flatMap((name) => {
    const fields = lines.find((line) => line.startsWith(`${name}:`))?.split(':') ?? []
    const [uid, gid] = [Number(fields[2]), Number(fields[3])]
    return uid > 0 && gid > 0 ? [switched(name, { uid, gid })] : []
  })
}

function switched(role: string, ids: { uid: number; gid: number }): Account {
  return { name: `user ${role} (uid ${ids.uid})`, wrapper: [], ids }
}

/** A folder that is root's will be handed over, so its mode does not matter yet. */
async function folderToEnter(account: Account, dir: string): Promise<string> {
  return account.ids !== undefined && (await ownerOf(dir))?.uid === 0 ? path.dirname(dir) : dir
}

async function whyUnable(account: Account, folder: string, postgres: string): Promise<string | undefined> {
  const { ok, output } = await runBinary(
    account,
    '/bin/sh',
    ['-c', 'cd "$1" && exec "$2" --version', 'sh', folder, postgres],
    { cwd: '/', timeoutMs: 10_000 },
  )
  return ok ? undefined : output
}

/**
 * Before this account starts the server: a user other than root must be able to enter the folder, and own the data that
 * root once kept there. Never while a server runs: it would lose its files.
 */
export async function handOver(account: Account, dir: string, dataDir: string): Promise<void> {
  const { ids } = account
  if (ids === undefined) return
  if ((await ownerOf(dir))?.uid === 0) await lchown(dir, ids.uid, ids.gid)
  if ((await ownerOf(dataDir))?.uid !== 0) return
  for (const entry of await readdir(dataDir, { recursive: true }))
    await lchown(path.join(dataDir, entry), ids.uid, ids.gid)
  // Last: until then the folder still counts as root's, and a later start finishes what a killed one began.
  await lchown(dataDir, ids.uid, ids.gid)
}

async function ownerOf(file: string): Promise<{ uid: number; gid: number } | undefined> {
  const found = await stat(file).catch(() => undefined)
  return found === undefined ? undefined : { uid: found.uid, gid: found.gid }
}
