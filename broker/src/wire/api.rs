//! The table of APIs that are served: key, versions, and from which version on the encoding is flexible.
//!
//! `ApiKey` holds exactly the rows of the table, so a dispatch that matches on it without a wildcard does not
//! compile until a new row has its handler.

use super::{Version, WireError};

macro_rules! apis {
    ($( $key:literal $api:ident: versions $first:literal to $last:literal, listed from $listed:literal,
        flexible from $flexible:literal; )*) => {
        /// An API that is served.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i16)]
        pub enum ApiKey {
            $( #[doc = stringify!($api)] $api = $key, )*
        }

        /// The table, in the order of the keys.
        pub const APIS: &[Api] = &[$( Api {
            key: ApiKey::$api,
            name: stringify!($api),
            version_first: $first,
            version_last: $last,
            version_listed_first: $listed,
            flexible_from: $flexible,
        }, )*];

        impl ApiKey {
            /// The API with that number, if it is served.
            pub fn from_number(key: i16) -> Option<Self> {
                match key {
                    $( $key => Some(ApiKey::$api), )*
                    _ => None,
                }
            }

            /// Its row of the table.
            pub const fn facts(self) -> &'static Api {
                let mut row = 0;
                while APIS[row].key as i16 != self as i16 {
                    row += 1;
                }
                &APIS[row]
            }
        }
    };
}

// Produce is listed from 0 although versions 0 to 2 are refused: librdkafka before its fix switches compression off
// otherwise (KAFKA-18659).
apis! {
    0 Produce: versions 3 to 13, listed from 0, flexible from 9;
    1 Fetch: versions 4 to 18, listed from 4, flexible from 12;
    2 ListOffsets: versions 1 to 11, listed from 1, flexible from 6;
    3 Metadata: versions 0 to 13, listed from 0, flexible from 9;
    18 ApiVersions: versions 0 to 4, listed from 0, flexible from 3;
    19 CreateTopics: versions 2 to 7, listed from 2, flexible from 5;
    20 DeleteTopics: versions 1 to 6, listed from 1, flexible from 4;
    21 DeleteRecords: versions 0 to 2, listed from 0, flexible from 2;
    23 OffsetForLeaderEpoch: versions 2 to 4, listed from 2, flexible from 4;
    32 DescribeConfigs: versions 1 to 4, listed from 1, flexible from 4;
    60 DescribeCluster: versions 0 to 2, listed from 0, flexible from 0;
}

/// One row: what is true of an API whatever its handler does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Api {
    /// The number in the request header.
    pub key: ApiKey,
    /// Kafka's name.
    pub name: &'static str,
    /// The first version that is served.
    pub version_first: i16,
    /// The last.
    pub version_last: i16,
    /// The first version that ApiVersions lists.
    pub version_listed_first: i16,
    /// From here on lengths are varints and structures carry tagged fields.
    pub flexible_from: i16,
}

impl ApiKey {
    /// The number in the request header.
    pub fn number(self) -> i16 {
        self as i16
    }

    /// Kafka's name.
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// Takes the version from a request header for good, or refuses it.
    ///
    /// # Errors
    /// `UnsupportedVersion`. ApiVersions has an answer for that (`ApiVersionsResponse::unsupported_version`), any
    /// other API none: Kafka closes the connection.
    pub fn version(self, number: i16) -> Result<Version, WireError> {
        let Api { name, version_first, version_last, flexible_from, .. } = *self.facts();
        if (version_first..=version_last).contains(&number) {
            return Ok(Version { number, flexible: number >= flexible_from });
        }
        Err(WireError::UnsupportedVersion {
            api: name,
            version: number,
            min: version_first,
            max: version_last,
        })
    }

    /// Whether the request header carries tagged fields (version 2) or not (version 1). Also answers for versions
    /// that are not served, so that their header can be read.
    pub fn request_header_version(self, version: i16) -> i16 {
        if version >= self.facts().flexible_from { 2 } else { 1 }
    }

    /// Whether the response header carries tagged fields (version 1) or not (version 0). That of ApiVersions never
    /// does: the client does not know yet what the broker speaks.
    pub fn response_header_version(self, version: i16) -> i16 {
        match self {
            ApiKey::ApiVersions => 0,
            _ => i16::from(version >= self.facts().flexible_from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_one_table() {
        for api in APIS {
            assert_eq!(ApiKey::from_number(api.key.number()), Some(api.key));
            assert_eq!(api.key.facts(), api);
            assert!(api.version_listed_first <= api.version_first && api.version_first <= api.version_last);
        }
        assert!(APIS.is_sorted_by_key(|api| api.key.number()));
        assert_eq!(ApiKey::from_number(4), None);
    }

    #[test]
    fn produce_is_listed_from_zero_and_served_from_three() {
        assert_eq!(ApiKey::Produce.facts().version_listed_first, 0);
        let refused = WireError::UnsupportedVersion { api: "Produce", version: 2, min: 3, max: 13 };
        assert_eq!(ApiKey::Produce.version(2), Err(refused));
        assert!(ApiKey::Produce.version(3).is_ok() && ApiKey::Produce.version(14).is_err());
    }

    #[test]
    fn the_header_of_an_api_versions_response_never_changes() {
        assert_eq!(ApiKey::ApiVersions.request_header_version(5), 2);
        assert!((0..6).all(|version| ApiKey::ApiVersions.response_header_version(version) == 0));
        assert_eq!(ApiKey::Fetch.response_header_version(11), 0);
        assert_eq!(ApiKey::Fetch.response_header_version(12), 1);
    }
}
