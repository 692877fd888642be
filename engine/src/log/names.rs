//! The names of files and directories, Kafka's: `<topic>-<partition>/<base offset, 20 digits>.log`.

use crate::types::Offset;

/// What a segment's file holds, by its extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ext {
    /// The batches: `.log`.
    Log,
    /// The offset index: `.index`.
    Index,
    /// The time index: `.timeindex`.
    TimeIndex,
}

impl Ext {
    /// All of them.
    pub const ALL: [Ext; 3] = [Ext::Log, Ext::Index, Ext::TimeIndex];

    /// The extension, without the dot.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Ext::Log => "log",
            Ext::Index => "index",
            Ext::TimeIndex => "timeindex",
        }
    }
}

/// Why a text is no name of a topic. The rules are Kafka's (`Topic.java`).
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum TopicNameError {
    /// Empty, or more than 249 characters.
    #[error("a topic name has 1 to {TOPIC_NAME_BYTES_MAX} characters, this one {0}")]
    Length(usize),
    /// A name that means a directory.
    #[error("\"{0}\" is no topic name: it means a directory")]
    Dots(String),
    /// A character that is not allowed.
    #[error("{0:?} is not allowed in a topic name: letters, digits, '.', '_' and '-' of ASCII are")]
    Character(char),
}

/// The longest topic name: with "-" and a partition it must stay a file name.
pub const TOPIC_NAME_BYTES_MAX: usize = 249;

/// Checks the name of a topic.
///
/// # Errors
/// The rule it breaks.
pub fn check_topic_name(name: &str) -> Result<(), TopicNameError> {
    if name.is_empty() || name.len() > TOPIC_NAME_BYTES_MAX {
        return Err(TopicNameError::Length(name.chars().count()));
    }
    if name == "." || name == ".." {
        return Err(TopicNameError::Dots(name.to_owned()));
    }
    let allowed = |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-');
    match name.chars().find(|character| !allowed(*character)) {
        Some(character) => Err(TopicNameError::Character(character)),
        None => Ok(()),
    }
}

/// `00000000000000000101.log` for base 101.
#[must_use]
pub fn segment_file_name(base: Offset, ext: Ext) -> String {
    format!("{base:0>20}.{}", ext.text(), base = base.0)
}

/// The base offset and the kind of a segment's file, if that is what the name says.
#[must_use]
pub fn parse_segment_file_name(name: &str) -> Option<(Offset, Ext)> {
    let (digits, ext) = name.split_once('.')?;
    let ext = Ext::ALL.into_iter().find(|known| known.text() == ext)?;
    let all_digits = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let base = digits.parse().ok().filter(|_| all_digits)?;
    Some((Offset(base), ext))
}

/// `orders-3` for partition 3 of topic `orders`.
#[must_use]
pub fn partition_dir_name(topic: &str, index: i32) -> String {
    format!("{topic}-{index}")
}

/// The topic and partition of a directory, if that is what the name says. The topic may hold dashes itself.
#[must_use]
pub fn parse_partition_dir_name(name: &str) -> Option<(&str, i32)> {
    let (topic, digits) = name.rsplit_once('-')?;
    let index: i32 = digits.parse().ok()?;
    // Only what would be written the same way: no sign, no zeros in front.
    let canonical = index >= 0 && index.to_string() == digits;
    (canonical && check_topic_name(topic).is_ok()).then_some((topic, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_files() {
        assert_eq!(segment_file_name(Offset(101), Ext::TimeIndex), "00000000000000000101.timeindex");
        assert_eq!(parse_segment_file_name("00000000000000000101.index"), Some((Offset(101), Ext::Index)));
        assert_eq!(segment_file_name(Offset(i64::MAX), Ext::Log), "09223372036854775807.log");
        for bad in [
            "101.log",
            "0000000000000000010a.log",
            "00000000000000000101.log.deleted",
            "00000000000000000101",
            "99999999999999999999.log",
            "+0000000000000000101.log",
            "",
            ".",
        ] {
            assert_eq!(parse_segment_file_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn partition_directories() {
        assert_eq!(partition_dir_name("a-b", 3), "a-b-3");
        assert_eq!(parse_partition_dir_name("a-b-3"), Some(("a-b", 3)));
        for bad in [
            "orders",
            "orders-",
            "-3",
            "orders-03",
            "orders-+3",
            "orders-99999999999",
            "..-1",
            "a/b-1",
            "orders-3.5d2f-delete",
        ] {
            assert_eq!(parse_partition_dir_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn topic_names() {
        assert_eq!(check_topic_name("Orders_2.eu-west"), Ok(()));
        assert_eq!(check_topic_name(&"x".repeat(249)), Ok(()));
        assert_eq!(check_topic_name(&"x".repeat(250)), Err(TopicNameError::Length(250)));
        assert_eq!(check_topic_name(""), Err(TopicNameError::Length(0)));
        assert_eq!(check_topic_name(".."), Err(TopicNameError::Dots("..".to_owned())));
        assert_eq!(check_topic_name("a b"), Err(TopicNameError::Character(' ')));
        assert_eq!(check_topic_name("é"), Err(TopicNameError::Character('é')));
    }
}
