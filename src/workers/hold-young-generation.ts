import { setFlagsFromString } from 'node:v8'

/**
 * To be imported ahead of everything else. The young generation grows with what survives while modules are evaluated, and
 * never shrinks, whatever the process does then. It stays as it is until letHeapGrow.
 */
setFlagsFromString('--semi-space-growth-factor=1')
