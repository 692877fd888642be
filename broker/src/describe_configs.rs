//! DescribeConfigs: the settings of topics, and what this broker was told.

use std::borrow::Cow;

use ringlog::TopicConfig;
use ringlog::shard::{SETTINGS, Setting, SettingKind};

use crate::config::REQUEST_PARTITIONS_MAX;
use crate::errors::{Fault, check_count};
use crate::wire::describe_configs::{
    DescribeConfigsRequest, DescribeConfigsResource, DescribeConfigsResourceResult, DescribeConfigsResponse,
    DescribeConfigsResult, DescribeConfigsSynonym,
};
use crate::wire::{Decoder, ErrorCode, Message, RequestHeader};
use crate::writer::Writer;

/// Kinds of resource.
const TOPIC: i8 = 2;
const BROKER: i8 = 4;
/// Where a value comes from: a topic's own setting, what the broker was told at its start, what is built in.
const SOURCE_TOPIC: i8 = 1;
const SOURCE_BROKER: i8 = 4;
const SOURCE_DEFAULT: i8 = 5;

pub(crate) async fn answer(
    writer: &mut Writer<'_>,
    header: &RequestHeader<'_>,
    decoder: &mut Decoder<'_>,
) -> Result<(), Fault> {
    let request = DescribeConfigsRequest::decode_from(decoder, header.version)?;
    check_count("resources in a DescribeConfigs request", request.resources.len(), REQUEST_PARTITIONS_MAX)?;
    let results = request.resources.iter().map(|resource| {
        let found = match resource.resource_type {
            TOPIC => of_topic(writer, &request, resource),
            BROKER => of_broker(writer, &request, resource),
            kind => {
                Err((ErrorCode::InvalidRequest, format!("resources of type {kind} have no settings here")))
            }
        };
        let DescribeConfigsResource { resource_type, resource_name, .. } = *resource;
        let (error_code, error_message, mut configs) = match found {
            Ok(configs) => (ErrorCode::None, None, configs),
            Err((code, words)) => (code, Some(Cow::Owned(words)), Vec::new()),
        };
        if let Some(keys) = &resource.configuration_keys {
            configs.retain(|config| keys.iter().any(|key| *key == config.name));
        }
        DescribeConfigsResult { error_code, error_message, resource_type, resource_name, configs }
    });
    let response =
        DescribeConfigsResponse { results: results.collect(), ..DescribeConfigsResponse::default() };
    writer.encode(header, header.version, &response)
}

type Found = Result<Vec<DescribeConfigsResourceResult<'static>>, (ErrorCode, String)>;

fn of_topic(
    writer: &Writer<'_>,
    request: &DescribeConfigsRequest<'_>,
    resource: &DescribeConfigsResource<'_>,
) -> Found {
    let shard = &writer.broker.shard;
    let name = resource.resource_name;
    if let Err(error) = ringlog::log::check_topic_name(name) {
        return Err((ErrorCode::InvalidTopicException, error.to_string()));
    }
    let topic = shard.topic(name);
    let topic =
        topic.ok_or_else(|| (ErrorCode::UnknownTopicOrPartition, format!("there is no topic {name}")))?;
    let told = &shard.config().topic_defaults;
    Ok(SETTINGS.iter().map(|setting| of_setting(request, setting, &topic.config, told)).collect())
}

fn of_setting(
    request: &DescribeConfigsRequest<'_>,
    setting: &Setting,
    topic: &TopicConfig,
    told: &TopicConfig,
) -> DescribeConfigsResourceResult<'static> {
    let value = |config: &TopicConfig| config.value(setting.name).expect("every setting has its value");
    // A topic keeps all its settings; what differs from the broker's was its own choice.
    let levels = [
        (SOURCE_TOPIC, value(topic)),
        (SOURCE_BROKER, value(told)),
        (SOURCE_DEFAULT, value(&TopicConfig::default())),
    ];
    let differs = |at: usize| at + 1 == levels.len() || levels[at].1 != levels[at + 1].1;
    let first = (0..levels.len()).find(|&at| differs(at)).expect("the last always does");
    let synonyms = (first..levels.len()).filter(|&at| differs(at)).map(|at| DescribeConfigsSynonym {
        name: Cow::Borrowed(setting.name),
        value: Some(Cow::Owned(levels[at].1.clone())),
        source: levels[at].0,
    });
    DescribeConfigsResourceResult {
        name: Cow::Borrowed(setting.name),
        value: Some(Cow::Owned(levels[0].1.clone())),
        config_source: levels[first].0,
        synonyms: if request.include_synonyms { synonyms.collect() } else { Vec::new() },
        config_type: match setting.kind {
            SettingKind::Text => 2,
            SettingKind::Int => 3,
            SettingKind::Long => 5,
            SettingKind::List => 7,
        },
        documentation: request.include_documentation.then_some(Cow::Borrowed(setting.words)),
        ..DescribeConfigsResourceResult::default()
    }
}

fn of_broker(
    writer: &Writer<'_>,
    request: &DescribeConfigsRequest<'_>,
    resource: &DescribeConfigsResource<'_>,
) -> Found {
    let (shard, config) = (&writer.broker.shard, &writer.broker.config);
    let node = shard.identity().node_id.to_string();
    if !matches!(resource.resource_name, name if name.is_empty() || name == node) {
        let words = format!("this is broker {node}, not {}", resource.resource_name);
        return Err((ErrorCode::InvalidRequest, words));
    }
    let mut settings = vec![
        ("auto.create.topics.enable", 1, config.auto_create_topics.to_string()),
        ("broker.id", 3, node.clone()),
        ("connections.max.idle.ms", 5, config.silence_max.as_millis().to_string()),
        ("log.dirs", 2, shard.config().data_dir.display().to_string()),
        ("log.retention.check.interval.ms", 5, shard.config().retention_interval.as_millis().to_string()),
        ("node.id", 3, node),
        ("num.partitions", 3, config.default_partitions.to_string()),
        ("ringlog.egress", 2, shard.config().egress.to_string()),
        ("ringlog.ingress", 2, shard.config().ingress.to_string()),
        ("ringlog.shards", 3, shard.shards().to_string()),
        ("socket.request.max.bytes", 3, config.frames.frame_bytes_max.to_string()),
    ];
    let defaults = &shard.config().topic_defaults;
    let of_topics = [
        ("log.segment.bytes", 3, "segment.bytes"),
        ("log.retention.ms", 5, "retention.ms"),
        ("log.retention.bytes", 5, "retention.bytes"),
        ("log.message.timestamp.type", 2, "message.timestamp.type"),
        ("message.max.bytes", 3, "max.message.bytes"),
        ("ringlog.ack", 2, "ringlog.ack"),
    ];
    settings.extend(of_topics.map(|(name, kind, topics)| {
        (name, kind, defaults.value(topics).expect("every setting has its value"))
    }));
    settings.sort_unstable();
    let described = settings.into_iter().map(|(name, config_type, value)| DescribeConfigsResourceResult {
        name: Cow::Borrowed(name),
        value: Some(Cow::Owned(value.clone())),
        read_only: true,
        config_source: SOURCE_BROKER,
        synonyms: match request.include_synonyms {
            true => vec![DescribeConfigsSynonym {
                name: Cow::Borrowed(name),
                value: Some(Cow::Owned(value)),
                source: SOURCE_BROKER,
            }],
            false => Vec::new(),
        },
        config_type,
        documentation: None,
        ..DescribeConfigsResourceResult::default()
    });
    Ok(described.collect())
}
