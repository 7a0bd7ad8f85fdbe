// A rewarder in JavaScript: is the answer polite about its length? node rewarder.mjs BROKERS RUN NAME
import { Consumer, Producer, MessagesStreamModes, MessagesStreamFallbackModes, ProduceAcks } from '@platformatic/kafka'
import { decode, encode } from '@msgpack/msgpack'

const [brokers, run, name] = process.argv.slice(2)
const bootstrapBrokers = brokers.split(',')
const producer = new Producer({ clientId: `${name}-js`, bootstrapBrokers })
const consumer = new Consumer({ groupId: `${run}.rewarder.${name}`, clientId: `${name}-js`, bootstrapBrokers })

function judge (sample) {
  const vote = { t: 'vote', v: 1, group_id: sample.group_id, index: sample.index, rewarder: name, outcome: 'abstain', value: null }
  if (sample.finish_reason === 'abort') return vote
  const vowels = (sample.text.match(/[aeiou]/g) ?? []).length
  return { ...vote, outcome: 'value', value: vowels / Math.max(1, sample.text.length), why: `${vowels} vowels` }
}

function read (bytes) {
  try {
    const message = decode(bytes)
    return message.t === 'trajectory' && message.v === 1 && name in message.rewards ? message : null
  } catch {
    return null // not for us to bury: the learner does
  }
}

const stream = await consumer.consume({
  topics: [`${run}.trajectories`],
  mode: MessagesStreamModes.COMMITTED,
  fallbackMode: MessagesStreamFallbackModes.EARLIEST,
  autocommit: false,
  sessionTimeout: 10000,
  heartbeatInterval: 1500
})
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => consumer.close(true).then(() => producer.close(true)).then(() => process.exit(0), () => process.exit(0)))
}
console.error(`serving ${name} of ${run}`)
for await (const message of stream) {
  const sample = read(message.value)
  if (sample) {
    const value = Buffer.from(encode(judge(sample)))
    await producer.send({ messages: [{ topic: `${run}.rewards`, key: message.key, value }], acks: ProduceAcks.ALL })
  }
  await message.commit() // behind the durable vote: at least once
}
