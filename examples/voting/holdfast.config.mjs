import { defineConfig } from 'holdfast'

export default defineConfig({ databases: { primary: 'embedded' } })
