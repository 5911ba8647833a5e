import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'

const root = fileURLToPath(new URL('..', import.meta.url))
const read = (path: string) => readFileSync(join(root, path), 'utf8')
const sources = readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' }).filter((f) =>
  f.endsWith('.ts'),
)

describe('docs', () => {
  it('list every error code, and none that does not exist', () => {
    const inCode = new Set(
      sources.flatMap((file) => read(`src/${file}`).match(/(?<=code = ')HOLDFAST_[A-Z_]+/g) ?? []),
    )
    const inDocs = new Set(read('docs/errors.md').match(/(?<=^\| `)HOLDFAST_[A-Z_]+/gm) ?? [])
    expect([...inDocs].toSorted()).toEqual([...inCode].toSorted())
  })

  it('print the first job as it stands in examples/', () => {
    expect(read('README.md')).toContain(`\`\`\`js\n${read('examples/first-job.mjs')}\`\`\``)
    expect(read('examples/first-job.mjs').split('\n').length - 1).toBeLessThan(20)
  })

  it('link to files that are there', () => {
    expect(read('README.md')).toContain('](docs/')
    for (const page of ['README.md', 'examples/README.md']) {
      for (const [, target = ''] of read(page).matchAll(/\]\(([^)#]+)(?:#[^)]*)?\)/g)) {
        if (!target.startsWith('http'))
          expect(existsSync(join(root, dirname(page), target)) || target).toBe(true)
      }
    }
  })
})
