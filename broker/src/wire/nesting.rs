//! The two nested arrays, topics and their partitions, that every hot message has: counts, names, and the tagged
//! fields at their ends. A compact count is a varint and cannot be patched in later, so counts come first; that as
//! many elements follow is our own duty, and asserted.

use super::{Encoder, Uuid, Version};

#[derive(Debug)]
pub(super) struct Nesting {
    version: Version,
    /// From this version on topics go by id.
    ids_from: i16,
    topics_left: usize,
    partitions_left: usize,
}

impl Nesting {
    pub(super) fn begin(
        encoder: &mut Encoder<'_>,
        version: Version,
        ids_from: i16,
        topic_count: usize,
    ) -> Self {
        encoder.length(version.flexible, topic_count as u64);
        Self { version, ids_from, topics_left: topic_count, partitions_left: 0 }
    }

    pub(super) fn topic(
        &mut self,
        encoder: &mut Encoder<'_>,
        name: &str,
        topic_id: &Uuid,
        partition_count: usize,
    ) {
        assert!(
            self.partitions_left == 0,
            "{} partitions of the last topic are missing",
            self.partitions_left
        );
        assert!(self.topics_left > 0, "more topics than announced");
        encoder.field = "topic";
        if self.version.number >= self.ids_from {
            encoder.put(topic_id);
        } else {
            encoder.string(self.version.flexible, name);
        }
        encoder.length(self.version.flexible, partition_count as u64);
        self.topics_left -= 1;
        self.partitions_left = partition_count;
        if partition_count == 0 {
            encoder.no_tagged_fields(self.version.flexible);
        }
    }

    /// To be called when a partition is written, its tagged fields included.
    pub(super) fn partition_done(&mut self, encoder: &mut Encoder<'_>) {
        assert!(self.partitions_left > 0, "more partitions than announced");
        self.partitions_left -= 1;
        if self.partitions_left == 0 {
            encoder.no_tagged_fields(self.version.flexible);
        }
    }

    pub(super) fn end(&self) {
        let left = (self.topics_left, self.partitions_left);
        assert!(left == (0, 0), "{} topics and {} partitions are missing", left.0, left.1);
    }
}
