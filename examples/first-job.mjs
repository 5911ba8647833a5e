import { createHoldfast, defineBatch, keyset } from 'holdfast'

const greet = defineBatch({
  name: 'greet',
  source: keyset({ table: 'people', key: ['id'] }),
  async process(people, { tx, publish }) {
    await tx`update people set greeted = true where id in ${tx(people.map((p) => p.id))}`
    await publish(people.map((p) => ({ type: 'person.greeted', subject: `person-${p.id}` })))
  },
})
const hf = await createHoldfast({ batches: [greet], migrate: true })
const { name } = await hf.beginDistributed(`setup-${Date.now()}`, async (tx) => {
  await tx`create table if not exists people (id int primary key, greeted boolean not null default false)`
  await tx`insert into people select generate_series(1, 5000) on conflict do nothing`
})
await hf.commitDistributed(name)
await hf.start()
console.log(await hf.batches.wait(await hf.batches.enqueue('greet')))
await hf.close()
