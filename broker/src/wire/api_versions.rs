//! ApiVersions (key 18): the first question of every client.

use super::api::APIS;
use super::table::messages;
use super::{ApiKey, ErrorCode};

messages! {
    /// Who the client is.
    pub struct ApiVersionsRequest<'a> of ApiVersions {
        client_software_name: &'a str = 3.., ignorable true;
        client_software_version: &'a str = 3.., ignorable true;
    }

    /// What the broker speaks.
    pub struct ApiVersionsResponse<'a> of ApiVersions {
        error_code: ErrorCode = 0..;
        api_keys: Vec<ApiVersionRange> = 0..;
        throttle_time_ms: i32 = 1.., ignorable true;
        supported_features: Vec<SupportedFeature<'a>> = 3.., tag 0, ignorable true;
        /// -1 when there are no finalized features to speak of.
        finalized_features_epoch: i64 = 3.., default -1, tag 1, ignorable true;
        finalized_features: Vec<FinalizedFeature<'a>> = 3.., tag 2, ignorable true;
        zk_migration_ready: bool = 3.., tag 3, ignorable true;
    }

    /// The versions of one API.
    pub struct ApiVersionRange {
        api_key: i16 = 0..;
        min_version: i16 = 0..;
        max_version: i16 = 0..;
    }

    /// A feature and the levels of it that the broker could run at.
    pub struct SupportedFeature<'a> {
        name: &'a str = 3..;
        min_version: i16 = 3..;
        max_version: i16 = 3..;
    }

    /// A feature and the level the cluster runs at.
    pub struct FinalizedFeature<'a> {
        name: &'a str = 3..;
        max_version_level: i16 = 3..;
        min_version_level: i16 = 3..;
    }
}

impl ApiVersionsResponse<'_> {
    /// Everything in the table of `api.rs`, without features.
    pub fn of_table() -> Self {
        let range = |api: &super::Api| ApiVersionRange {
            api_key: api.key.number(),
            min_version: api.version_listed_first,
            max_version: api.version_last,
        };
        Self { api_keys: APIS.iter().map(range).collect(), ..Self::default() }
    }

    /// The answer to an ApiVersions request in a version that is not served; to be sent in the form of **version
    /// 0**, whatever was asked (KIP-511). It names the versions to ask in.
    pub fn unsupported_version() -> Self {
        let api = ApiKey::ApiVersions.facts();
        let range = ApiVersionRange {
            api_key: api.key.number(),
            min_version: api.version_listed_first,
            max_version: api.version_last,
        };
        Self { error_code: ErrorCode::UnsupportedVersion, api_keys: vec![range], ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Encoder, encode_response};

    #[test]
    fn a_version_from_the_future_is_answered_in_the_form_of_version_0() {
        let mut bytes = Vec::new();
        let body = ApiVersionsResponse::unsupported_version();
        encode_response(&mut Encoder::growing(&mut bytes), 9, 0, &body).unwrap();
        // Length 16, correlation id 9, error 35, one key: 18 from 0 to 4.
        assert_eq!(bytes, [0, 0, 0, 16, 0, 0, 0, 9, 0, 35, 0, 0, 0, 1, 0, 18, 0, 0, 0, 4]);
    }
}
