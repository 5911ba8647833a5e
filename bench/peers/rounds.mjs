/**
 * Answers each number of events that the parent sends with how many per second went into the stream. Filling and stopping
 * are not measured; starting is, as it is for Holdfast.
 */
export async function answerRounds({ fill, drain, there }) {
  process.on('message', (events) => {
    round(events).then(
      (rate) => process.send({ rate }),
      (error) => process.send({ problem: String(error?.stack ?? error) }),
    )
  })
  process.on('disconnect', () => process.exit())
  process.send({ ready: true })

  async function round(events) {
    await fill(events)
    const started = performance.now()
    const stop = await drain(events)
    const rate = events / ((performance.now() - started) / 1_000)
    await stop()
    const found = await there()
    if (found !== events) throw new Error(`${found} of ${events} events are in the stream`)
    return rate
  }
}
