//! What is asked of a broker rarely: which versions it speaks, topics made and deleted, their settings.
//!
//! One request at a time on a connection of the load ([`crate::client`]), decoded by the broker's wire codec. Nothing here
//! is ours alone: Apache Kafka 4 answers the same.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ringlog_broker::wire::api_versions::{ApiVersionsRequest, ApiVersionsResponse};
use ringlog_broker::wire::create_topics::{
    CreatableTopic, CreatableTopicConfig, CreateTopicsRequest, CreateTopicsResponse,
};
use ringlog_broker::wire::delete_topics::{DeleteTopicState, DeleteTopicsRequest, DeleteTopicsResponse};
use ringlog_broker::wire::describe_configs::{
    DescribeConfigsRequest, DescribeConfigsResource, DescribeConfigsResponse,
};
use ringlog_broker::wire::list_offsets::{
    ListOffsetsPartition, ListOffsetsRequest, ListOffsetsResponse, ListOffsetsTopic, TIMESTAMP_EARLIEST,
};
use ringlog_broker::wire::metadata::{MetadataRequest, MetadataRequestTopic, MetadataResponse};
use ringlog_broker::wire::{
    ApiKey, Encode, Encoder, Message, RequestHeader, decode_response, encode_request,
};

use crate::client::{CLIENT_ID, Connection, Incoming};
use crate::waiting::within;
use crate::{consumers, producers};

const API_VERSIONS_VERSION: i16 = 3;
const CREATE_TOPICS_VERSION: i16 = 7;
const DELETE_TOPICS_VERSION: i16 = 6;
const DESCRIBE_CONFIGS_VERSION: i16 = 4;
const LIST_OFFSETS_VERSION: i16 = 7;
const METADATA_VERSION: i16 = 12;
/// How long the broker may take for something rare.
const COLD_PATIENCE: Duration = Duration::from_secs(30);
/// How often it is asked whether a topic's partitions are led.
const LEADERS_STEP: Duration = Duration::from_millis(20);
/// A cold request and its answer are at most this large.
const COLD_BYTES_MAX: usize = 1 << 20;
/// The kind of resource that topics are, among those that have settings.
const TOPIC: i8 = 2;

/// Every request that the load makes, in the version that it makes it in.
const SPOKEN: [(ApiKey, i16); 7] = [
    (ApiKey::Produce, producers::VERSION),
    (ApiKey::Fetch, consumers::VERSION),
    (ApiKey::ListOffsets, LIST_OFFSETS_VERSION),
    (ApiKey::Metadata, METADATA_VERSION),
    (ApiKey::CreateTopics, CREATE_TOPICS_VERSION),
    (ApiKey::DeleteTopics, DELETE_TOPICS_VERSION),
    (ApiKey::DescribeConfigs, DESCRIBE_CONFIGS_VERSION),
];

impl Connection {
    /// Whether the broker takes every request of the load in the version that the load speaks.
    ///
    /// # Errors
    /// When it does not, by the names of the requests, or when the connection broke.
    pub async fn check_versions(&self) -> Result<()> {
        let request = ApiVersionsRequest {
            client_software_name: CLIENT_ID,
            client_software_version: env!("CARGO_PKG_VERSION"),
        };
        let mut incoming = self.incoming(COLD_BYTES_MAX).await?;
        let answer = self.ask(&mut incoming, API_VERSIONS_VERSION, 1, &request).await?;
        let (_, answer): (_, ApiVersionsResponse<'_>) =
            decode_response(answer, API_VERSIONS_VERSION).context("the answer to ApiVersions")?;
        ensure!(answer.error_code.is_ok(), "ApiVersions: {}", answer.error_code.name());
        let missing = SPOKEN.iter().filter_map(|&(api, version)| {
            let of_api = answer.api_keys.iter().find(|range| range.api_key == api.number());
            let spoken = of_api.map(|range| (range.min_version, range.max_version));
            match spoken {
                Some((first, last)) if (first..=last).contains(&version) => None,
                Some((first, last)) => {
                    Some(format!("{} in version {version} (it has {first} to {last})", api.name()))
                }
                None => Some(format!("{} at all", api.name())),
            }
        });
        let missing: Vec<String> = missing.collect();
        ensure!(missing.is_empty(), "the broker does not take {}", missing.join(", "));
        Ok(())
    }

    /// Creates a topic with `partitions`, whose segments are at most of `segment_bytes` if that is said, and waits until
    /// the broker leads every one of them: it may say that a topic is created before it takes appends.
    ///
    /// # Errors
    /// The broker's own error, by name, or a connection that broke.
    pub async fn create_topic(&self, name: &str, partitions: u32, segment_bytes: Option<u64>) -> Result<()> {
        let segment_bytes = segment_bytes.map(|bytes| bytes.to_string());
        let config = |value| CreatableTopicConfig { name: "segment.bytes", value: Some(value) };
        let topic = CreatableTopic {
            name,
            num_partitions: i32::try_from(partitions)?,
            replication_factor: 1,
            configs: segment_bytes.as_deref().map(config).into_iter().collect(),
            ..CreatableTopic::default()
        };
        let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 30_000, validate_only: false };
        let mut incoming = self.incoming(COLD_BYTES_MAX).await?;
        let answer = self.ask(&mut incoming, CREATE_TOPICS_VERSION, 1, &request).await?;
        let (_, answer): (_, CreateTopicsResponse<'_>) =
            decode_response(answer, CREATE_TOPICS_VERSION).context("the answer to CreateTopics")?;
        for topic in &answer.topics {
            let why = topic.error_message.as_deref().unwrap_or_default();
            ensure!(topic.error_code.is_ok(), "creating topic {name}: {} {why}", topic.error_code.name());
        }
        let deadline = self.ring.now().plus(COLD_PATIENCE);
        loop {
            // Metadata names a leader some time before that one takes appends: it is asked itself.
            let led = match self.led(&mut incoming, name).await? {
                led if led == partitions => self.serving(&mut incoming, name, partitions).await?,
                led => led,
            };
            if led == partitions {
                return Ok(());
            }
            if self.ring.now() > deadline {
                bail!("topic {name}: {led} of {partitions} partitions have a leader after {COLD_PATIENCE:?}");
            }
            self.ring.sleep(LEADERS_STEP).await;
        }
    }

    /// Deletes a topic.
    ///
    /// # Errors
    /// The broker's own error, by name, or a connection that broke.
    pub async fn delete_topic(&self, name: &str) -> Result<()> {
        let topic = DeleteTopicState { name: Some(name), ..DeleteTopicState::default() };
        let request =
            DeleteTopicsRequest { topics: vec![topic], timeout_ms: 30_000, ..DeleteTopicsRequest::default() };
        let mut incoming = self.incoming(COLD_BYTES_MAX).await?;
        let answer = self.ask(&mut incoming, DELETE_TOPICS_VERSION, 1, &request).await?;
        let (_, answer): (_, DeleteTopicsResponse<'_>) =
            decode_response(answer, DELETE_TOPICS_VERSION).context("the answer to DeleteTopics")?;
        for topic in &answer.responses {
            let why = topic.error_message.as_deref().unwrap_or_default();
            ensure!(topic.error_code.is_ok(), "deleting topic {name}: {} {why}", topic.error_code.name());
        }
        Ok(())
    }

    /// All settings of a topic that have a value, by name.
    ///
    /// # Errors
    /// The broker's own error, by name, or a connection that broke.
    pub async fn topic_settings(&self, name: &str) -> Result<BTreeMap<String, String>> {
        let resource =
            DescribeConfigsResource { resource_type: TOPIC, resource_name: name, configuration_keys: None };
        let request =
            DescribeConfigsRequest { resources: vec![resource], ..DescribeConfigsRequest::default() };
        let mut incoming = self.incoming(COLD_BYTES_MAX).await?;
        let answer = self.ask(&mut incoming, DESCRIBE_CONFIGS_VERSION, 1, &request).await?;
        let (_, answer): (_, DescribeConfigsResponse<'_>) =
            decode_response(answer, DESCRIBE_CONFIGS_VERSION).context("the answer to DescribeConfigs")?;
        let result = answer.results.into_iter().next();
        let result = result.context("an answer to DescribeConfigs without a result")?;
        let why = result.error_message.as_deref().unwrap_or_default();
        ensure!(result.error_code.is_ok(), "settings of topic {name}: {} {why}", result.error_code.name());
        let pairs = result.configs.iter().map(|config| (config.name.as_ref(), config.value.as_deref()));
        let pairs = pairs.filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
        Ok(pairs.collect())
    }

    /// How many partitions of a topic have a leader, by the broker's metadata.
    async fn led(&self, incoming: &mut Incoming, topic: &str) -> Result<u32> {
        let request = MetadataRequest {
            topics: Some(vec![MetadataRequestTopic { name: Some(topic), ..MetadataRequestTopic::default() }]),
            allow_auto_topic_creation: false,
            ..MetadataRequest::default()
        };
        let answer = self.ask(incoming, METADATA_VERSION, 2, &request).await?;
        let (_, answer): (_, MetadataResponse<'_>) =
            decode_response(answer, METADATA_VERSION).context("the answer to Metadata")?;
        let led = answer.topics.iter().flat_map(|topic| &topic.partitions);
        let led = led.filter(|partition| partition.error_code.is_ok() && partition.leader_id >= 0).count();
        Ok(u32::try_from(led)?)
    }

    /// How many partitions of a topic say where they begin, as only a leader does.
    async fn serving(&self, incoming: &mut Incoming, topic: &str, partitions: u32) -> Result<u32> {
        let partition = |index| ListOffsetsPartition {
            partition_index: index,
            timestamp: TIMESTAMP_EARLIEST,
            ..ListOffsetsPartition::default()
        };
        let partitions = (0..i32::try_from(partitions)?).map(partition).collect();
        let request = ListOffsetsRequest {
            replica_id: -1,
            topics: vec![ListOffsetsTopic { name: topic, partitions }],
            ..ListOffsetsRequest::default()
        };
        let answer = self.ask(incoming, LIST_OFFSETS_VERSION, 3, &request).await?;
        let (_, answer): (_, ListOffsetsResponse<'_>) =
            decode_response(answer, LIST_OFFSETS_VERSION).context("the answer to ListOffsets")?;
        let partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
        Ok(u32::try_from(partitions.filter(|partition| partition.error_code.is_ok()).count())?)
    }

    /// Asks something rare and waits for the answer; nothing else may be in flight.
    async fn ask<'a, Q: Message + Encode>(
        &self,
        incoming: &'a mut Incoming,
        version: i16,
        correlation_id: i32,
        request: &Q,
    ) -> Result<&'a [u8]> {
        let mut lease = self.ring.lease(COLD_BYTES_MAX).await.context("memory for a request")?;
        let header = RequestHeader { api: Q::API, version, correlation_id, client_id: Some(CLIENT_ID) };
        let bytes = encode_request(&mut Encoder::fixed(&mut lease), &header, request)?;
        self.send(lease.freeze().slice(0..bytes as usize)).await?;
        within(&self.ring, COLD_PATIENCE, self.receive(incoming))
            .await
            .with_context(|| format!("no answer to {} within {COLD_PATIENCE:?}", Q::API.name()))?
    }
}
