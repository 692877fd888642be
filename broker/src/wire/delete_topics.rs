//! DeleteTopics (key 20).

use std::borrow::Cow;

use super::table::messages;
use super::{ErrorCode, Uuid};

messages! {
    /// Topics to be deleted: by name, from version 6 on by name or id.
    pub struct DeleteTopicsRequest<'a> of DeleteTopics {
        topics: Vec<DeleteTopicState<'a>> = 6..;
        topic_names: Vec<&'a str> = 0..=5, ignorable true;
        timeout_ms: i32 = 0..;
    }

    /// A topic by its name, or without one by its id.
    pub struct DeleteTopicState<'a> {
        name: Option<&'a str> = 6..;
        topic_id: Uuid = 6..;
    }

    /// What became of each topic.
    pub struct DeleteTopicsResponse<'a> of DeleteTopics {
        throttle_time_ms: i32 = 1.., ignorable true;
        responses: Vec<DeletableTopicResult<'a>> = 0..;
    }

    /// What became of one topic.
    pub struct DeletableTopicResult<'a> {
        /// Null only for an id that nobody knows.
        name: Option<Cow<'a, str>> = 0.., nullable 6.., default Some(Cow::Borrowed(""));
        topic_id: Uuid = 6.., ignorable true;
        error_code: ErrorCode = 0..;
        error_message: Option<Cow<'a, str>> = 5.., ignorable true;
    }
}
