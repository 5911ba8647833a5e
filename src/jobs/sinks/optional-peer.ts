import { InvalidConfigError } from '../../db/errors.ts'

/**
 * Loads a client library that only this sink needs, so that whoever does not use the sink need not have it. Throws
 * InvalidConfigError with what to install when it is not there.
 */
export async function optionalPeer<T>(
  sink: string,
  packages: readonly string[],
  load: () => Promise<T>,
): Promise<T> {
  try {
    return await load()
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined
    if (code !== 'ERR_MODULE_NOT_FOUND' && code !== 'MODULE_NOT_FOUND') throw error
    throw new InvalidConfigError(
      [`${sink}: its client library is not installed; npm install ${packages.join(' ')}`],
      {
        cause: error,
      },
    )
  }
}
