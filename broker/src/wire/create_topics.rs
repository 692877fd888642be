//! CreateTopics (key 19).

use std::borrow::Cow;

use super::table::messages;
use super::{ErrorCode, Uuid};

messages! {
    /// Topics to be created.
    pub struct CreateTopicsRequest<'a> of CreateTopics {
        topics: Vec<CreatableTopic<'a>> = 0..;
        timeout_ms: i32 = 0.., default 60_000;
        validate_only: bool = 1..;
    }

    /// One topic to be created.
    pub struct CreatableTopic<'a> {
        name: &'a str = 0..;
        /// -1 for the broker's default, or with assignments.
        num_partitions: i32 = 0..;
        /// -1 for the broker's default, or with assignments.
        replication_factor: i16 = 0..;
        assignments: Vec<CreatableReplicaAssignment> = 0..;
        configs: Vec<CreatableTopicConfig<'a>> = 0..;
    }

    /// Where one partition is to lie.
    pub struct CreatableReplicaAssignment {
        partition_index: i32 = 0..;
        broker_ids: Vec<i32> = 0..;
    }

    /// One setting of a topic to be created.
    pub struct CreatableTopicConfig<'a> {
        name: &'a str = 0..;
        value: Option<&'a str> = 0..;
    }

    /// What became of each topic.
    pub struct CreateTopicsResponse<'a> of CreateTopics {
        throttle_time_ms: i32 = 2.., ignorable true;
        topics: Vec<CreatableTopicResult<'a>> = 0..;
    }

    /// What became of one topic.
    pub struct CreatableTopicResult<'a> {
        name: &'a str = 0..;
        topic_id: Uuid = 7.., ignorable true;
        error_code: ErrorCode = 0..;
        /// Mostly made up on the spot, so it may be owned.
        error_message: Option<Cow<'a, str>> = 1.., ignorable true;
        /// Why `configs` is null, if it is.
        topic_config_error_code: ErrorCode = 5.., tag 0, ignorable true;
        num_partitions: i32 = 5.., default -1, ignorable true;
        replication_factor: i16 = 5.., default -1, ignorable true;
        configs: Option<Vec<CreatableTopicConfigs<'a>>> = 5.., default Some(Vec::new()), ignorable true;
    }

    /// One setting of a created topic.
    pub struct CreatableTopicConfigs<'a> {
        name: &'a str = 5..;
        value: Option<&'a str> = 5..;
        read_only: bool = 5..;
        config_source: i8 = 5.., default -1, ignorable true;
        is_sensitive: bool = 5..;
    }
}
