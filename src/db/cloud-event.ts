import { InvalidPayloadError } from './errors.ts'

/** An event as CloudEvents 1.0 has it in JSON; headers are extension attributes. */
export type CloudEvent = {
  readonly specversion: '1.0'
  readonly id: string
  readonly source: string
  readonly type: string
  readonly time: string
  readonly subject?: string
  readonly partitionkey?: string
  readonly data: unknown
  readonly [extension: string]: unknown
}

/** Attributes that have a meaning of their own; all others are extensions. */
const reserved = new Set([
  'specversion',
  'id',
  'source',
  'type',
  'time',
  'subject',
  'partitionkey',
  'datacontenttype',
  'dataschema',
  'data',
])

/** The names that CloudEvents allows an extension (1.0, section 3.1). */
const namePattern = /^[a-z0-9]+$/

/**
 * Headers as extension attributes; those that are undefined are left out. Throws InvalidPayloadError for names and values
 * that no receiver of CloudEvents would take.
 */
export function toExtensions(headers: object, path: string): Record<string, unknown> {
  const extensions: Record<string, unknown> = {}
  for (const [name, value] of Object.entries(headers)) {
    if (value === undefined) continue
    if (!isExtension(name)) {
      throw new InvalidPayloadError(
        `${path} has the name ${JSON.stringify(name)}, which cannot be an attribute of a CloudEvent; use lower-case letters and digits only, and none of CloudEvents' own names`,
      )
    }
    if (!['string', 'number', 'boolean'].includes(typeof value)) {
      throw new InvalidPayloadError(`${path}.${name} is not a string; put what has a structure into data`)
    }
    extensions[name] = value
  }
  return extensions
}

/** The extension attributes of an event, which are the headers that it was published with. */
export function extensionsOf(event: CloudEvent): Record<string, unknown> {
  return Object.fromEntries(Object.entries(event).filter(([name]) => isExtension(name)))
}

function isExtension(name: string): boolean {
  return namePattern.test(name) && !reserved.has(name)
}

export const reservedNames: readonly string[] = [...reserved]
