import path from 'node:path'

/** Where things are inside the folder of one embedded server. */
export type Layout = {
  dir: string
  data: string
  password: string
  log: string
  locks: string
  users: string
  /** exists while the last user stops the server */
  stopping: string
}

export function layoutOf(dir: string): Layout {
  const inside = (name: string) => path.join(dir, name)
  return {
    dir,
    data: inside('data'),
    password: inside('password'),
    log: inside('server.log'),
    locks: inside('locks'),
    users: inside('users'),
    stopping: inside('stopping'),
  }
}
