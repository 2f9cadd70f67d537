// A consumer of decisions: acts once on each, whatever comes again.
//
//     npm install kafkajs@2.2.4
//     node decisions.mjs --brokers 127.0.0.1:9092 --topic flight-decisions --group my-service
//
// It remembers which decisions it has acted on by reading the last hours of each partition again when it begins: what lies before
// the group's committed position has been acted on.

import { parseArgs } from "node:util";
import { createRequire } from "node:module";

const { Kafka, logLevel } = createRequire(`${process.cwd()}/`)("kafkajs"); // from the folder in which it was installed

const isText = (value) => typeof value === "string";
const isTexts = (value) => Array.isArray(value) && value.every(isText);
// What this consumer needs of a decision; fields that it does not know are passed over.
const FIELDS = {
  decision_id: ["string", isText],
  decision: ["string", isText],
  score: ["number or null", (value) => value === null || typeof value === "number"],
  reasons: ["array of strings", isTexts],
  flags: ["array of strings", isTexts],
  model: ["string", isText],
  model_version: ["integer", Number.isInteger],
};

/** The decision in a message; throws an error that names position, field, expected and got where it is not as docs/asyncapi.yaml says. */
export function read(value, position) {
  let found;
  try {
    found = JSON.parse(value);
  } catch (error) {
    throw new Error(`${position}: expected a JSON object: ${error.message}`);
  }
  if (found === null || typeof found !== "object" || Array.isArray(found)) throw new Error(`${position}: expected a JSON object`);
  for (const [name, [expected, holds]] of Object.entries(FIELDS)) {
    if (!holds(found[name])) throw new Error(`${position}: ${name}: expected ${expected}, got ${JSON.stringify(found[name])}`);
  }
  return found;
}

/** The decisions of one partition that were acted on, for some hours of the messages' time; oldest first. */
class Memory {
  constructor(hours, actedBefore) {
    this.keep = hours * 3_600_000;
    this.actedBefore = actedBefore; // the group's position when it began: what lies before it was acted on
    this.seen = new Map();
  }

  isNew(id, at) {
    const isNew = !this.seen.has(id);
    if (isNew) this.seen.set(id, at);
    for (const [old, time] of this.seen) {
      if (time >= at - this.keep) break;
      this.seen.delete(old);
    }
    return isNew;
  }
}

const total = { decisions: 0, repeats: 0, millionths: 0, flagged: 0, by_decision: {} };

/** A consumer of yours blocks a card or calls a passenger here. */
function act(decision) {
  total.decisions += 1;
  total.by_decision[decision.decision] = (total.by_decision[decision.decision] ?? 0) + 1;
  if (decision.flags.length) total.flagged += 1;
  if (decision.score !== null) total.millionths += Math.floor(decision.score * 1e6 + 0.5);
}

/** Acts on decisions until a signal, or until none has come for `idle` seconds (0: for ever). */
async function consume(brokers, topic, group, hours, idle) {
  const kafka = new Kafka({ brokers: brokers.split(","), clientId: group, logLevel: logLevel.ERROR });
  const consumer = kafka.consumer({ groupId: group, readUncommitted: false });
  const admin = kafka.admin();
  const memories = new Map();
  let last = Infinity; // when a decision came, or partitions
  let failed;
  let leave;
  const left = new Promise((resolve) => (leave = resolve));
  await admin.connect();
  await consumer.connect();
  consumer.on(consumer.events.GROUP_JOIN, () => {
    memories.clear();
    last = Date.now();
  });
  consumer.on(consumer.events.CRASH, ({ payload }) => {
    if (payload.restart) return;
    failed = payload.error;
    leave();
  });
  await consumer.subscribe({ topic, fromBeginning: true });
  await consumer.run({
    autoCommit: false,
    eachBatchAutoResolve: false,
    eachBatch: async ({ batch, resolveOffset, heartbeat, isRunning, isStale }) => {
      const { partition } = batch;
      if (!memories.has(partition)) {
        // The first batch begins at the group's position: look back from there first, and come again.
        const since = await admin.fetchTopicOffsetsByTimestamp(topic, Date.now() - hours * 3_600_000);
        const start = BigInt(since.find((each) => each.partition === partition).offset);
        const position = BigInt(batch.fetchedOffset);
        memories.set(partition, new Memory(hours, position));
        if (start < position) return consumer.seek({ topic, partition, offset: `${start}` });
      }
      const memory = memories.get(partition);
      let done = null;
      for (const message of batch.messages) {
        if (!isRunning() || isStale()) break;
        const offset = BigInt(message.offset);
        let decision;
        try {
          decision = read(message.value, `${topic}/${partition}@${offset}`);
        } catch (error) {
          failed = error; // kafkajs would try again for ever
          leave();
          return;
        }
        const isNew = memory.isNew(decision.decision_id, Number(message.timestamp));
        resolveOffset(message.offset);
        last = Date.now();
        if (offset < memory.actedBefore) continue;
        if (isNew) act(decision);
        else total.repeats += 1;
        done = offset + 1n;
      }
      if (done !== null) await consumer.commitOffsets([{ topic, partition, offset: `${done}` }]);
      await heartbeat();
    },
  });
  const watch = setInterval(() => idle && Date.now() - last > idle * 1000 && leave(), 100);
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, leave);
  await left;
  clearInterval(watch);
  await consumer.disconnect();
  await admin.disconnect();
  if (failed) throw failed;
}

const { values: told } = parseArgs({
  options: {
    brokers: { type: "string", default: "127.0.0.1:9092" },
    topic: { type: "string" },
    group: { type: "string" },
    remember: { type: "string", default: "24" },
    idle: { type: "string", default: "0" },
  },
});
if (!told.topic || !told.group) {
  console.error("usage: node decisions.mjs --topic T --group G [--brokers B] [--remember HOURS] [--idle SECONDS]");
  process.exit(2);
}
try {
  await consume(told.brokers, told.topic, told.group, Number(told.remember), Number(told.idle));
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
total.by_decision = Object.fromEntries(Object.entries(total.by_decision).sort());
console.log(JSON.stringify(total));
