#!/usr/bin/env python3
"""Real text through librdkafka: what comes out equals what went in, per partition and in order, for every codec.

Usage: text.py BOOTSTRAP [LINES]. Ends with 0 when all codecs pass, 1 when one fails, 77 when confluent-kafka is missing.
"""

import glob
import gzip
import sys
import time
import uuid

try:
    from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
    from confluent_kafka.admin import AdminClient, NewTopic
except ImportError:
    sys.exit(77)

PARTITIONS = 8
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
PATIENCE_SECONDS = 60


def lines_of_text(count):
    """Lines of the changelogs on this machine, repeated until there are enough."""
    lines = []
    for name in sorted(glob.glob("/usr/share/doc/*/changelog*.gz")):
        with gzip.open(name) as file:
            lines.extend(line.rstrip(b"\n") for line in file)
        if len(lines) >= count:
            break
    if not lines:
        with open(__file__, "rb") as file:
            lines = file.read().split(b"\n")
    return [lines[number % len(lines)] for number in range(count)]


def send(bootstrap, topic, codec, lines):
    """Sends every line and waits for its acknowledgement; returns what went to each partition."""
    failures = []
    producer = Producer({"bootstrap.servers": bootstrap, "compression.type": codec})
    sent = [[] for _ in range(PARTITIONS)]
    for number, line in enumerate(lines):
        # A stride that visits the partitions unevenly, as keys do.
        key, partition = b"key %d" % (number % 1000), number * number % 1009 % PARTITIONS
        sent[partition].append((key, line))
        while True:
            try:
                producer.produce(
                    topic, line, key, partition, on_delivery=lambda error, _: error and failures.append(error)
                )
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    left = producer.flush(PATIENCE_SECONDS)
    if left or failures:
        raise RuntimeError(f"{left} lines without an answer, {len(failures)} failed: {failures[:3]}")
    return sent


def receive(bootstrap, topic, count):
    """Reads as many lines from all partitions; checks on the way that offsets run without gaps."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
        received, read, heard = [[] for _ in range(PARTITIONS)], 0, time.monotonic()
        # Once everything is there, a moment longer: nothing may follow.
        while read < count or time.monotonic() < heard + 1:
            messages = consumer.consume(10_000, 0.5)
            for message in messages:
                if message.error():
                    raise KafkaException(message.error())
                into = received[message.partition()]
                if message.offset() != len(into):
                    raise RuntimeError(f"offset {message.offset()} where {len(into)} was due")
                into.append((message.key(), message.value()))
            read += len(messages)
            heard = time.monotonic() if messages else heard
            if read < count and time.monotonic() > heard + PATIENCE_SECONDS:
                raise RuntimeError(f"{read} of {count} lines came, then nothing any more")
        return received
    finally:
        consumer.close()


def run(bootstrap, codec, lines):
    topic = f"text-{codec}-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(PATIENCE_SECONDS)
    began = time.monotonic()
    sent = send(bootstrap, topic, codec, lines)
    between = time.monotonic()
    received = receive(bootstrap, topic, len(lines))
    for partition, (wanted, found) in enumerate(zip(sent, received)):
        if wanted != found:
            at = next((n for n, pair in enumerate(zip(wanted, found)) if pair[0] != pair[1]), "the end")
            raise RuntimeError(f"partition {partition} differs at {at}: {len(found)} lines of {len(wanted)}")
    return between - began, time.monotonic() - between


def main():
    bootstrap = sys.argv[1]
    lines = lines_of_text(int(sys.argv[2]) if len(sys.argv) > 2 else 200_000)
    failed = 0
    for codec in CODECS:
        try:
            wrote, read = run(bootstrap, codec, lines)
            print(f"PASS text.py {codec}: {len(lines)} lines, sent in {wrote:.1f} s, read in {read:.1f} s", flush=True)
        except Exception as error:  # Whatever it is, the other codecs are tried as well.
            failed += 1
            print(f"FAIL text.py {codec}: {error}", flush=True)
    sys.exit(1 if failed else 0)


main()
