/** Which events go to which sinks. */
export type Route = { readonly type: string; readonly to: readonly string[] }

/** Whether a sink wants events of a type. Without routes every sink gets every event. */
export function routeTo(sink: string, routes: readonly Route[] | undefined): (type: string) => boolean {
  if (routes === undefined) return () => true
  const patterns = routes.filter((route) => route.to.includes(sink)).map((route) => patternOf(route.type))
  const known = new Map<string, boolean>()
  return (type) => {
    let wanted = known.get(type)
    if (wanted === undefined) {
      wanted = patterns.some((pattern) => pattern.test(type))
      if (known.size < 1_000) known.set(type, wanted)
    }
    return wanted
  }
}

/** `*` stands for one segment between dots, `**` for the rest. */
function patternOf(type: string): RegExp {
  const segments = type.split('.').map((segment) => {
    if (segment === '**') return '.+'
    return segment
      .split('*')
      .map((part) => part.replaceAll(/[\\^$.*+?()[\]{}|/-]/g, String.raw`\$&`))
      .join('[^.]*')
  })
  return new RegExp(`^${segments.join(String.raw`\.`)}$`)
}
