import type { RedisOptions } from 'ioredis'

/** One server, or nodes of a cluster, through which the others are found. */
export type RedisUrls = string | readonly string[]

/** Of a variable of the environment: one URL, or several with commas between them. */
export function parseUrls(text: string): RedisUrls {
  const urls = text.split(/\s*,\s*(?=rediss?:\/\/)/)
  return urls.length === 1 ? text : urls
}

/** What is wrong with it; none of it repeats a URL, which may hold a password. */
export function problemsOfUrls(urls: RedisUrls): string[] {
  const all = typeof urls === 'string' ? [urls] : urls
  return [
    ...(all.length === 0 ? ['the list of cluster nodes is empty'] : []),
    ...(all.every((one) => /^rediss?:\/\//.test(one) && URL.canParse(one) && !new URL(one).host.includes(','))
      ? []
      : ['a URL starts with redis:// or rediss://']),
  ]
}

/** What the first URL says about getting in; nodes that the cluster names have no URL of their own. */
export function accessOf([first = '']: readonly string[]): Pick<
  RedisOptions,
  'username' | 'password' | 'tls'
> {
  const { protocol, username, password } = new URL(first)
  return {
    ...(username === '' ? {} : { username: decodeURIComponent(username) }),
    ...(password === '' ? {} : { password: decodeURIComponent(password) }),
    ...(protocol === 'rediss:' ? { tls: {} } : {}),
  }
}
