#!/usr/bin/env python3
"""What librdkafka's administrator asks: topics made and deleted, records deleted, settings, the cluster.

Usage: admin.py BOOTSTRAP [LINES]. Ends with 0 when all parts pass, 1 when one fails, 77 when confluent-kafka is missing.
"""

import sys
import uuid

try:
    from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
    from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec, ResourceType
except ImportError:
    sys.exit(77)

PATIENCE = 30


def main():
    bootstrap = sys.argv[1]
    admin = AdminClient({"bootstrap.servers": bootstrap})
    topic = f"admin-{uuid.uuid4().hex[:8]}"

    def code_of(future):
        try:
            future.result(PATIENCE)
        except KafkaException as error:
            return error.args[0].code()
        return None

    def topics():
        made = NewTopic(topic, 3, 1, config={"retention.ms": "3600000", "message.timestamp.type": "LogAppendTime"})
        assert code_of(admin.create_topics([made])[topic]) is None
        assert code_of(admin.create_topics([made])[topic]) == KafkaError.TOPIC_ALREADY_EXISTS
        assert len(admin.list_topics(topic, PATIENCE).topics[topic].partitions) == 3

    def settings():
        asked = ConfigResource(ResourceType.TOPIC, topic)
        found = admin.describe_configs([asked])[asked].result(PATIENCE)
        assert found["retention.ms"].value == "3600000", found["retention.ms"]
        assert found["message.timestamp.type"].value == "LogAppendTime"
        node = ConfigResource(ResourceType.BROKER, str(admin.list_topics(timeout=PATIENCE).controller_id))
        assert "num.partitions" in admin.describe_configs([node])[node].result(PATIENCE)

    def records():
        producer = Producer({"bootstrap.servers": bootstrap})
        stamped = []
        for number in range(100):
            producer.produce(topic, b"%d" % number, partition=1, on_delivery=lambda _, m: stamped.append(m.timestamp()))
        assert producer.flush(PATIENCE) == 0
        # 2 is librdkafka's word for the log's own time.
        assert {kind for kind, _ in stamped} == {2}, stamped[:3]
        at = TopicPartition(topic, 1, 40)
        assert admin.delete_records([at])[at].result(PATIENCE).low_watermark == 40
        beyond = TopicPartition(topic, 1, 101)
        assert code_of(admin.delete_records([beyond])[beyond]) == KafkaError.OFFSET_OUT_OF_RANGE
        where = admin.list_offsets({at: OffsetSpec.earliest()})[at].result(PATIENCE)
        assert where.offset == 40, where
        consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "auto.offset.reset": "earliest"})
        consumer.assign([TopicPartition(topic, 1, 0)])
        message = consumer.poll(PATIENCE)
        assert (message.offset(), message.value()) == (40, b"40"), message
        consumer.close()

    def cluster():
        described = admin.describe_cluster().result(PATIENCE)
        assert len(described.nodes) == 1 and described.cluster_id, described

    def deletion():
        assert code_of(admin.delete_topics([topic])[topic]) is None
        assert code_of(admin.delete_topics([topic])[topic]) == KafkaError.UNKNOWN_TOPIC_OR_PART

    failed = 0
    for part in [topics, settings, records, cluster, deletion]:
        try:
            part()
            print(f"PASS admin.py {part.__name__}", flush=True)
        except Exception as error:  # Whatever it is, the other parts are tried as well.
            failed += 1
            print(f"FAIL admin.py {part.__name__}: {type(error).__name__} {error}", flush=True)
    sys.exit(1 if failed else 0)


main()
