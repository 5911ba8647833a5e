import type { StandardSchemaV1 } from '@standard-schema/spec'
import { InvalidPayloadError } from '../db/errors.ts'

/** Parses a value by a Standard Schema (zod, valibot, arktype). Throws InvalidPayloadError with every issue. */
export async function parseBySchema<T>(
  schema: StandardSchemaV1<unknown, T>,
  value: unknown,
  what: string,
): Promise<T> {
  const result = await schema['~standard'].validate(value)
  if (!result.issues) return result.value
  throw new InvalidPayloadError(`${what}: ${describeIssues(result.issues)}`)
}

export function describeIssues(issues: readonly StandardSchemaV1.Issue[]): string {
  return issues
    .map(({ path, message }) => {
      const place = (path ?? []).map((p) => String(typeof p === 'object' ? p.key : p)).join('.')
      return place === '' ? message : `${place}: ${message}`
    })
    .join('; ')
}
