//! DescribeConfigs (key 32): settings of topics and of this broker.

use std::borrow::Cow;

use super::ErrorCode;
use super::table::messages;

messages! {
    /// What is to be described.
    pub struct DescribeConfigsRequest<'a> of DescribeConfigs {
        resources: Vec<DescribeConfigsResource<'a>> = 0..;
        include_synonyms: bool = 1..;
        include_documentation: bool = 3..;
    }

    /// A topic or a broker, and which of its settings; all when null.
    pub struct DescribeConfigsResource<'a> {
        resource_type: i8 = 0..;
        resource_name: &'a str = 0..;
        configuration_keys: Option<Vec<&'a str>> = 0.., default Some(Vec::new());
    }

    /// The settings.
    pub struct DescribeConfigsResponse<'a> of DescribeConfigs {
        throttle_time_ms: i32 = 0..;
        results: Vec<DescribeConfigsResult<'a>> = 0..;
    }

    /// Those of one resource.
    pub struct DescribeConfigsResult<'a> {
        error_code: ErrorCode = 0..;
        error_message: Option<Cow<'a, str>> = 0.., default Some(Cow::Borrowed(""));
        resource_type: i8 = 0..;
        resource_name: &'a str = 0..;
        configs: Vec<DescribeConfigsResourceResult<'a>> = 0..;
    }

    /// One setting.
    pub struct DescribeConfigsResourceResult<'a> {
        name: Cow<'a, str> = 0..;
        value: Option<Cow<'a, str>> = 0.., default Some(Cow::Borrowed(""));
        read_only: bool = 0..;
        config_source: i8 = 1.., default -1, ignorable true;
        is_sensitive: bool = 0..;
        synonyms: Vec<DescribeConfigsSynonym<'a>> = 1.., ignorable true;
        config_type: i8 = 3.., ignorable true;
        documentation: Option<Cow<'a, str>> = 3.., default Some(Cow::Borrowed("")), ignorable true;
    }

    /// Where else the value of a setting could come from, the strongest first.
    pub struct DescribeConfigsSynonym<'a> {
        name: Cow<'a, str> = 1..;
        value: Option<Cow<'a, str>> = 1.., default Some(Cow::Borrowed(""));
        source: i8 = 1..;
    }
}
