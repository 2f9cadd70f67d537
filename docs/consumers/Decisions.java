import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.WakeupException;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * A consumer of decisions: acts once on each, whatever comes again.
 *
 *     java -cp "$KAFKA_HOME/libs/*" Decisions.java --brokers 127.0.0.1:9092 --topic flight-decisions --group my-service
 *
 * Needs Java 17, kafka-clients and jackson-databind. It remembers which decisions it has acted on by reading the last hours of each
 * partition again when it begins: what lies before the group's committed position has been acted on.
 */
public final class Decisions {
    /** What this consumer needs of a decision; fields that it does not know are passed over. */
    record Decision(String id, String decision, Double score, List<String> reasons, List<String> flags, String model, long version) {}

    /** A message that is not what docs/asyncapi.yaml says. */
    static final class NotAsDescribed extends RuntimeException {
        NotAsDescribed(String position, String field, String expected, Object got) {
            super(position + ": " + field + ": expected " + expected + ", got " + (got == null ? "no such field" : got));
        }
    }

    private static final ObjectMapper JSON = new ObjectMapper();

    static Decision read(byte[] value, String position) {
        JsonNode found;
        try {
            found = JSON.readTree(value == null ? new byte[0] : value);
        } catch (java.io.IOException error) {
            throw new NotAsDescribed(position, "$", "a JSON object", error.getMessage());
        }
        if (!found.isObject()) throw new NotAsDescribed(position, "$", "a JSON object", found);
        JsonNode score = found.get("score");
        if (score == null || !(score.isNumber() || score.isNull())) throw new NotAsDescribed(position, "score", "number or null", score);
        JsonNode version = found.get("model_version");
        if (version == null || !version.isIntegralNumber()) throw new NotAsDescribed(position, "model_version", "integer", version);
        return new Decision(text(found, "decision_id", position), text(found, "decision", position),
            score.isNull() ? null : score.doubleValue(), texts(found, "reasons", position), texts(found, "flags", position),
            text(found, "model", position), version.longValue());
    }

    private static String text(JsonNode found, String field, String position) {
        JsonNode got = found.get(field);
        if (got == null || !got.isTextual()) throw new NotAsDescribed(position, field, "string", got);
        return got.textValue();
    }

    private static List<String> texts(JsonNode found, String field, String position) {
        JsonNode got = found.get(field);
        if (got == null || !got.isArray()) throw new NotAsDescribed(position, field, "array", got);
        List<String> texts = new ArrayList<>();
        got.forEach(each -> texts.add(each.asText()));
        return texts;
    }

    /** The decisions of one partition that were acted on, for some hours of the messages' time; oldest first. */
    static final class Memory {
        final long actedBefore; // the group's position when it began: what lies before it was acted on
        private final long keep;
        private final LinkedHashMap<String, Long> seen = new LinkedHashMap<>();

        Memory(double hours, long actedBefore) {
            this.keep = (long) (hours * 3_600_000);
            this.actedBefore = actedBefore;
        }

        boolean isNew(String id, long at) {
            boolean isNew = seen.putIfAbsent(id, at) == null;
            for (Iterator<Long> times = seen.values().iterator(); times.hasNext() && times.next() < at - keep;) times.remove();
            return isNew;
        }
    }

    private long decisions, repeats, millionths, flagged;
    private long last; // when a decision came, or partitions; 0: not yet
    private final SortedMap<String, Long> byDecision = new TreeMap<>();

    /** A consumer of yours blocks a card or calls a passenger here. */
    private void act(Decision decision) {
        decisions++;
        byDecision.merge(decision.decision(), 1L, Long::sum);
        if (!decision.flags().isEmpty()) flagged++;
        if (decision.score() != null) millionths += (long) Math.floor(decision.score() * 1e6 + 0.5);
    }

    /** Acts on decisions until a signal, or until none has come for `idle` seconds (0: for ever). */
    void consume(String brokers, String topic, String group, double hours, double idle) {
        Map<String, Object> settings = Map.of(
            "bootstrap.servers", brokers, "group.id", group, "auto.offset.reset", "earliest", "enable.auto.commit", false,
            "isolation.level", "read_committed", // Java's client has to be told
            "key.deserializer", ByteArrayDeserializer.class, "value.deserializer", ByteArrayDeserializer.class);
        Map<TopicPartition, Memory> memories = new HashMap<>();
        KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(settings);
        CountDownLatch closed = new CountDownLatch(1);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            if (closed.getCount() > 0) consumer.wakeup();
            try {
                closed.await(10, TimeUnit.SECONDS);
            } catch (InterruptedException error) {
                Thread.currentThread().interrupt();
            }
        }));
        try {
            consumer.subscribe(List.of(topic), new ConsumerRebalanceListener() {
                public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
                    last = System.nanoTime();
                    long since = System.currentTimeMillis() - (long) (hours * 3_600_000);
                    Map<TopicPartition, Long> times = new HashMap<>();
                    partitions.forEach(each -> times.put(each, since));
                    Map<TopicPartition, OffsetAndMetadata> done = consumer.committed(Set.copyOf(partitions));
                    Map<TopicPartition, OffsetAndTimestamp> starts = consumer.offsetsForTimes(times);
                    for (TopicPartition each : partitions) {
                        long position = done.get(each) == null ? 0 : done.get(each).offset();
                        memories.put(each, new Memory(hours, position));
                        OffsetAndTimestamp start = starts.get(each);
                        if (done.get(each) == null) consumer.seekToBeginning(List.of(each));
                        else if (start != null) consumer.seek(each, Math.min(start.offset(), position));
                    }
                }

                public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
                    partitions.forEach(memories::remove);
                }
            });
            while (idle == 0 || last == 0 || System.nanoTime() - last < idle * 1e9) {
                ConsumerRecords<byte[], byte[]> records = consumer.poll(Duration.ofMillis(200));
                if (records.isEmpty()) continue;
                last = System.nanoTime();
                Map<TopicPartition, OffsetAndMetadata> done = new HashMap<>();
                for (ConsumerRecord<byte[], byte[]> record : records) {
                    TopicPartition partition = new TopicPartition(record.topic(), record.partition());
                    Memory memory = memories.get(partition);
                    Decision decision = read(record.value(), partition + "@" + record.offset());
                    boolean isNew = memory.isNew(decision.id(), record.timestamp());
                    if (record.offset() < memory.actedBefore) continue;
                    if (isNew) act(decision);
                    else repeats++;
                    done.put(partition, new OffsetAndMetadata(record.offset() + 1));
                }
                if (!done.isEmpty()) consumer.commitSync(done);
            }
        } catch (WakeupException asked) {
            System.err.println("asked to leave");
        } finally {
            consumer.close();
            closed.countDown();
        }
    }

    Map<String, Object> total() {
        Map<String, Object> total = new LinkedHashMap<>();
        total.put("decisions", decisions);
        total.put("repeats", repeats);
        total.put("millionths", millionths);
        total.put("flagged", flagged);
        total.put("by_decision", byDecision);
        return total;
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, String> told = new HashMap<>(Map.of("--brokers", "127.0.0.1:9092", "--remember", "24", "--idle", "0"));
        for (int k = 0; k + 1 < arguments.length; k += 2) told.put(arguments[k], arguments[k + 1]);
        if (!told.containsKey("--topic") || !told.containsKey("--group") || arguments.length % 2 == 1) {
            System.err.println("usage: Decisions.java --topic T --group G [--brokers B] [--remember HOURS] [--idle SECONDS]");
            System.exit(2);
        }
        Decisions consumer = new Decisions();
        try {
            consumer.consume(told.get("--brokers"), told.get("--topic"), told.get("--group"),
                Double.parseDouble(told.get("--remember")), Double.parseDouble(told.get("--idle")));
        } catch (NotAsDescribed error) {
            System.err.println(error.getMessage());
            System.exit(1);
        }
        System.out.println(JSON.writeValueAsString(consumer.total()));
    }
}
