import { loadConfig } from 'c12'
import { InvalidConfigError } from '../db/errors.ts'
import { messageOf } from '../db/message-of.ts'
import type { HoldfastConfig } from '../workers/config.ts'

/**
 * Loads `holdfast.config.ts` (or .js, .mjs) from the working directory, or the file that was named. Without a file the
 * config is empty; a named file must exist. Nothing else is read: no rc files, no .env.
 */
export async function loadHoldfastConfig(file?: string): Promise<HoldfastConfig> {
  try {
    const { config } = await loadConfig<HoldfastConfig>({
      name: 'holdfast',
      ...(file === undefined ? {} : { configFile: file }),
      configFileRequired: file !== undefined,
      rcFile: false,
      globalRc: false,
      packageJson: false,
      dotenv: false,
      extend: false,
      giget: false,
    })
    return config
  } catch (error) {
    throw new InvalidConfigError([`the config could not be loaded: ${messageOf(error)}`], {
      cause: error,
    })
  }
}
