//! One table of facts per message, from which the structure, its default, decoder, encoder and encoded length follow.
//!
//! A table is Kafka's own JSON definition in Rust: a field, its type, the versions that have it, and where it differs
//! from the common case, the versions in which it may be null, its default, its tag, and whether a version without
//! the field may drop it silently (`ignorable`). Fields stand in the order of the wire, tagged ones in that of their
//! tags.
//!
//! ```text
//! messages! {
//!     /// Which topics a client asks about.
//!     pub struct MetadataRequest<'a> of Metadata {
//!         topics: Option<Vec<MetadataRequestTopic<'a>>> = 0.., nullable 1..;
//!         allow_auto_topic_creation: bool = 4.., default true;
//!     }
//! }
//! ```
//!
//! `of Metadata` makes it a whole message of that API; without it, it is an element. `view` in place of `struct`
//! gives only the decoder, for structures that hold a `View`. A new API is one file with its tables and one row in
//! `api.rs`.

/// See the module's words.
macro_rules! messages {
    ($(
        $(#[$meta:meta])*
        pub $kind:ident $name:ident $(<$life:lifetime>)? $(of $api:ident)? { $($fields:tt)* }
    )*) => { $(
        $crate::wire::table::message! {
            $kind [$(#[$meta])*] $name [$($life)?] [$($api)?] { $($fields)* }
        }
    )* };
}

macro_rules! message {
    (struct $meta:tt $name:ident [] $api:tt $fields:tt) => {
        $crate::wire::table::message!(@define [Clone, Debug, PartialEq] $meta [$name] $fields);
        impl Default for $name { $crate::wire::table::default_body!($fields); }
        impl<'a> $crate::wire::Decode<'a> for $name { $crate::wire::table::decode_body!('a $name $fields); }
        impl<'a> $crate::wire::DecodeNullable<'a> for $name { $crate::wire::table::decode_nullable_body!('a); }
        impl $crate::wire::Encode for $name { $crate::wire::table::encode_body!($name $fields); }
        impl $crate::wire::EncodeNullable for $name { $crate::wire::table::encode_nullable_body!(); }
        $crate::wire::table::message!(@api [] [$name] $api);
    };
    (struct $meta:tt $name:ident [$life:lifetime] $api:tt $fields:tt) => {
        $crate::wire::table::message!(@define [Clone, Debug, PartialEq] $meta [$name<$life>] $fields);
        impl<$life> Default for $name<$life> { $crate::wire::table::default_body!($fields); }
        impl<$life> $crate::wire::Decode<$life> for $name<$life> {
            $crate::wire::table::decode_body!($life $name $fields);
        }
        impl<$life> $crate::wire::DecodeNullable<$life> for $name<$life> {
            $crate::wire::table::decode_nullable_body!($life);
        }
        impl<$life> $crate::wire::Encode for $name<$life> { $crate::wire::table::encode_body!($name $fields); }
        impl<$life> $crate::wire::EncodeNullable for $name<$life> {
            $crate::wire::table::encode_nullable_body!();
        }
        $crate::wire::table::message!(@api [$life] [$name<$life>] $api);
    };
    (view $meta:tt $name:ident [$($life:lifetime)?] $api:tt $fields:tt) => {
        $crate::wire::table::message!(@define [Clone, Debug] $meta [$name $(<$life>)?] $fields);
        $crate::wire::table::message!(@view $name [$($life)?] $fields);
        $crate::wire::table::message!(@api [$($life)?] [$name $(<$life>)?] $api);
    };
    (@view $name:ident [] $fields:tt) => {
        impl Default for $name { $crate::wire::table::default_body!($fields); }
        impl<'a> $crate::wire::Decode<'a> for $name { $crate::wire::table::decode_body!('a $name $fields); }
    };
    (@view $name:ident [$life:lifetime] $fields:tt) => {
        impl<$life> Default for $name<$life> { $crate::wire::table::default_body!($fields); }
        impl<$life> $crate::wire::Decode<$life> for $name<$life> {
            $crate::wire::table::decode_body!($life $name $fields);
        }
    };
    (@define [$($derive:ident),*] [$(#[$meta:meta])*] [$($name:tt)*] {
        $( $(#[$note:meta])* $field:ident : $ty:ty = $versions:expr
           $(, nullable $nullable:expr)? $(, default $default:expr)? $(, tag $tag:literal)?
           $(, ignorable $ignorable:literal)? ; )*
    }) => {
        $(#[$meta])*
        #[derive($($derive),*)]
        pub struct $($name)* { $( $(#[$note])* pub $field: $ty, )* }
    };
    (@api $life:tt $name:tt []) => {};
    (@api [$($life:lifetime)?] [$($name:tt)*] [$api:ident]) => {
        impl$(<$life>)? $crate::wire::Message for $($name)* {
            const API: $crate::wire::ApiKey = $crate::wire::ApiKey::$api;
        }
    };
}

macro_rules! default_body {
    ({
        $( $(#[$note:meta])* $field:ident : $ty:ty = $versions:expr
           $(, nullable $nullable:expr)? $(, default $default:expr)? $(, tag $tag:literal)?
           $(, ignorable $ignorable:literal)? ; )*
    }) => {
        #[inline]
        fn default() -> Self {
            Self { $( $field: $crate::wire::table::or_default!($($default)?), )* }
        }
    };
}

macro_rules! decode_body {
    ($life:lifetime $name:ident {
        $( $(#[$note:meta])* $field:ident : $ty:ty = $versions:expr
           $(, nullable $nullable:expr)? $(, default $default:expr)? $(, tag $tag:literal)?
           $(, ignorable $ignorable:literal)? ; )*
    }) => {
        fn bytes_min(version: $crate::wire::Version) -> usize {
            let mut bytes = usize::from(version.flexible);
            $( if $crate::wire::table::untagged!($($tag)?) && ($versions).contains(&version.number) {
                bytes += <$ty as $crate::wire::Decode<$life>>::bytes_min(version);
            } )*
            bytes.max(1)
        }

        #[inline]
        fn decode(
            decoder: &mut $crate::wire::Decoder<$life>,
            version: $crate::wire::Version,
        ) -> Result<Self, $crate::wire::WireError> {
            let mut message = Self::default();
            $( if $crate::wire::table::untagged!($($tag)?) && ($versions).contains(&version.number) {
                decoder.field = concat!(stringify!($name), ".", stringify!($field));
                message.$field = $crate::wire::Decode::decode(decoder, version)?;
                $( if message.$field.is_none() && !($nullable).contains(&version.number) {
                    return Err(decoder.null_not_allowed(version.number));
                } )?
            } )*
            if version.flexible {
                decoder.field = concat!(stringify!($name), " tagged fields");
                for _ in 0..decoder.uvarint()? {
                    // A message without tagged fields in this table uses neither, and matches nothing.
                    #[allow(unused_mut, unused_variables)]
                    let (tag, mut value) = decoder.tagged_field()?;
                    #[allow(clippy::match_single_binding)]
                    match tag {
                        $( $( $tag if ($versions).contains(&version.number) => {
                            value.field = concat!(stringify!($name), ".", stringify!($field));
                            message.$field = $crate::wire::Decode::decode(&mut value, version)?;
                            value.finish()?;
                        } )? )*
                        _ => {}
                    }
                }
            }
            Ok(message)
        }
    };
}

/// A structure that may be null is preceded by a byte: negative for null.
macro_rules! decode_nullable_body {
    ($life:lifetime) => {
        fn nullable_bytes_min(_: $crate::wire::Version) -> usize {
            1
        }
        fn decode_nullable(
            decoder: &mut $crate::wire::Decoder<$life>,
            version: $crate::wire::Version,
        ) -> Result<Option<Self>, $crate::wire::WireError> {
            let present: i8 = $crate::wire::Decode::decode(decoder, version)?;
            if present < 0 {
                return Ok(None);
            }
            <Self as $crate::wire::Decode<$life>>::decode(decoder, version).map(Some)
        }
    };
}

macro_rules! encode_body {
    ($name:ident {
        $( $(#[$note:meta])* $field:ident : $ty:ty = $versions:expr
           $(, nullable $nullable:expr)? $(, default $default:expr)? $(, tag $tag:literal)?
           $(, ignorable $ignorable:literal)? ; )*
    }) => {
        fn encode(&self, encoder: &mut $crate::wire::Encoder<'_>, version: $crate::wire::Version) {
            const { $crate::wire::table::assert_ascending(&[$($($tag,)?)*]) };
            let default = Self::default();
            let mut tagged = 0u32;
            $(
                encoder.field = concat!(stringify!($name), ".", stringify!($field));
                if !($versions).contains(&version.number) {
                    if !$crate::wire::table::is_true!($($ignorable)?) && self.$field != default.$field {
                        encoder.not_in_version(version.number);
                    }
                } else if $crate::wire::table::untagged!($($tag)?) {
                    $( if self.$field.is_none() && !($nullable).contains(&version.number) {
                        encoder.null_not_allowed(version.number);
                    } )?
                    $crate::wire::Encode::encode(&self.$field, encoder, version);
                } else if self.$field != default.$field {
                    tagged += 1;
                }
            )*
            if version.flexible {
                encoder.uvarint(tagged);
                $( $( if ($versions).contains(&version.number) && self.$field != default.$field {
                    encoder.field = concat!(stringify!($name), ".", stringify!($field));
                    $crate::wire::table::encode_tagged(encoder, $tag, &self.$field, version);
                } )? )*
            }
        }

        fn prune(&mut self, version: $crate::wire::Version) {
            let default = Self::default();
            $( if ($versions).contains(&version.number) {
                $crate::wire::Encode::prune(&mut self.$field, version);
            } else {
                self.$field = default.$field;
            } )*
        }
    };
}

macro_rules! encode_nullable_body {
    () => {
        fn encode_nullable(
            value: Option<&Self>,
            encoder: &mut $crate::wire::Encoder<'_>,
            version: $crate::wire::Version,
        ) {
            $crate::wire::Encode::encode(&if value.is_some() { 1i8 } else { -1 }, encoder, version);
            if let Some(value) = value {
                $crate::wire::Encode::encode(value, encoder, version);
            }
        }
    };
}

macro_rules! untagged {
    () => {
        true
    };
    ($tag:literal) => {
        false
    };
}

macro_rules! is_true {
    () => {
        false
    };
    ($value:literal) => {
        $value
    };
}

macro_rules! or_default {
    () => {
        Default::default()
    };
    ($value:expr) => {
        $value
    };
}

pub(crate) use {
    decode_body, decode_nullable_body, default_body, encode_body, encode_nullable_body, is_true, message,
    messages, or_default, untagged,
};

use super::{Encode, Encoder, Version};

/// Kafka writes tagged fields in the order of their tags.
pub(crate) const fn assert_ascending(tags: &[u32]) {
    let mut next = 1;
    while next < tags.len() {
        assert!(tags[next - 1] < tags[next], "tagged fields stand in the order of their tags");
        next += 1;
    }
}

/// Tag, size, value. The size comes from a counting pass, so that one buffer is enough.
pub(crate) fn encode_tagged<T: Encode>(encoder: &mut Encoder<'_>, tag: u32, value: &T, version: Version) {
    let mut counter = Encoder::counting();
    value.encode(&mut counter, version);
    encoder.uvarint(tag);
    encoder.uvarint(u32::try_from(counter.position()).unwrap_or(u32::MAX));
    value.encode(encoder, version);
}

#[cfg(test)]
mod tests {
    use crate::wire::{Decode, Decoder, Encode, Encoder, Version};

    messages! {
        /// Every form of field that the served messages do not use yet.
        pub struct Everything<'a> {
            cursor: Option<Cursor> = 1..;
            assignment: &'a [u8] = 0..;
            user_data: Option<&'a [u8]> = 0..;
            groups: Vec<String> = 0..;
            quota: f64 = 0..;
            port: u16 = 0..;
            mask: u32 = 0..;
            late: Option<Cursor> = 2.., tag 3;
        }

        /// A structure that may be null.
        #[derive(Copy)]
        pub struct Cursor {
            index: i32 = 0..;
        }
    }

    #[test]
    fn structures_bytes_and_the_odd_numbers_come_back() {
        for (number, flexible) in [(1, false), (2, true)] {
            let version = Version { number, flexible };
            for (cursor, user_data) in [(None, None), (Some(Cursor { index: 7 }), Some(&b"data"[..]))] {
                let message = Everything {
                    cursor,
                    assignment: b"bytes",
                    user_data,
                    groups: vec!["one".into(), "two".into()],
                    quota: 0.5,
                    port: 65535,
                    mask: u32::MAX,
                    late: if flexible { cursor } else { None },
                };
                let mut bytes = Vec::new();
                let mut encoder = Encoder::growing(&mut bytes);
                message.encode(&mut encoder, version);
                encoder.finish().unwrap();
                let mut decoder = Decoder::new(&bytes);
                assert_eq!(Everything::decode(&mut decoder, version), Ok(message));
                decoder.finish().unwrap();
                assert!(Everything::bytes_min(version) <= bytes.len());
                // A null structure is one byte, 0xff; a present one begins with 1 (KIP-893).
                assert_eq!(bytes[0], if cursor.is_some() { 1 } else { 0xff });
            }
        }
    }
}
