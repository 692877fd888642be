//! Metadata (key 3): which topics there are and who leads their partitions.

use super::table::messages;
use super::{ErrorCode, Uuid};

messages! {
    /// Which topics a client asks about.
    pub struct MetadataRequest<'a> of Metadata {
        /// See [`MetadataRequest::asks_for_all`].
        topics: Option<Vec<MetadataRequestTopic<'a>>> = 0.., nullable 1..;
        allow_auto_topic_creation: bool = 4.., default true;
        include_cluster_authorized_operations: bool = 8..=10;
        include_topic_authorized_operations: bool = 8..;
    }

    /// A topic by name, or from version 10 on by id.
    pub struct MetadataRequestTopic<'a> {
        topic_id: Uuid = 10.., ignorable true;
        name: Option<&'a str> = 0.., nullable 10.., default Some("");
    }

    /// The brokers, and the topics asked for.
    pub struct MetadataResponse<'a> of Metadata {
        throttle_time_ms: i32 = 3.., ignorable true;
        brokers: Vec<MetadataBroker<'a>> = 0..;
        cluster_id: Option<&'a str> = 2.., ignorable true;
        controller_id: i32 = 1.., default -1, ignorable true;
        topics: Vec<MetadataTopic<'a>> = 0..;
        cluster_authorized_operations: i32 = 8..=10, default i32::MIN;
        error_code: ErrorCode = 13.., ignorable true;
    }

    /// A broker's address.
    pub struct MetadataBroker<'a> {
        node_id: i32 = 0..;
        host: &'a str = 0..;
        port: i32 = 0..;
        rack: Option<&'a str> = 1.., ignorable true;
    }

    /// A topic, or why there is none.
    pub struct MetadataTopic<'a> {
        error_code: ErrorCode = 0..;
        /// Null only for an id that nobody knows.
        name: Option<&'a str> = 0.., nullable 12.., default Some("");
        topic_id: Uuid = 10.., ignorable true;
        is_internal: bool = 1.., ignorable true;
        partitions: Vec<MetadataPartition> = 0..;
        topic_authorized_operations: i32 = 8.., default i32::MIN;
    }

    /// A partition and its replicas.
    pub struct MetadataPartition {
        error_code: ErrorCode = 0..;
        partition_index: i32 = 0..;
        leader_id: i32 = 0..;
        leader_epoch: i32 = 7.., default -1, ignorable true;
        replica_nodes: Vec<i32> = 0..;
        isr_nodes: Vec<i32> = 0..;
        offline_replicas: Vec<i32> = 5.., ignorable true;
    }
}

impl MetadataRequest<'_> {
    /// Whether all topics are meant: null, or in version 0, which has no null, an empty list.
    pub fn asks_for_all(&self, version: i16) -> bool {
        match &self.topics {
            None => true,
            Some(topics) => version == 0 && topics.is_empty(),
        }
    }
}
