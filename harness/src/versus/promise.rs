//! What an answer to a producer really promises, by the settings that the broker itself says a topic has.
//!
//! | settings | the answer means |
//! |---|---|
//! | `ringlog.ack` | what it says: memory, written, durable |
//! | `flush.messages` = 1 | flushed (fsync) after each append, before the answer: durable on one node |
//! | `flush.messages` > 1 | in the page cache of one node: survives `kill -9`, not power loss |
//!
//! Topics of a run have one replica, so whatever several nodes would promise together is not in it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::spec::Ack;

const ACK: &str = "ringlog.ack";
const FLUSH_MESSAGES: &str = "flush.messages";

/// What an answer promises.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Promise {
    /// In our words; nothing where the broker does not say enough.
    pub ack: Option<Ack>,
    /// The settings that it rests on.
    pub settings: BTreeMap<String, String>,
}

impl Promise {
    /// Of a topic with these settings.
    #[must_use]
    pub fn of(settings: &BTreeMap<String, String>) -> Promise {
        let setting = |name: &str| settings.get(name).map(String::as_str);
        let (ack, named) = match (setting(ACK), setting(FLUSH_MESSAGES)) {
            (Some("memory"), _) => (Some(Ack::Memory), ACK),
            (Some("written"), _) => (Some(Ack::Written), ACK),
            (Some("durable"), _) => (Some(Ack::Durable), ACK),
            (Some(_), _) => (None, ACK),
            (None, Some("1")) => (Some(Ack::Durable), FLUSH_MESSAGES),
            (None, Some(messages)) => {
                let counted = messages.parse::<u64>().is_ok();
                (counted.then_some(Ack::Written), FLUSH_MESSAGES)
            }
            (None, None) => (None, FLUSH_MESSAGES),
        };
        let named = settings.iter().filter(|(name, _)| *name == named);
        Promise { ack, settings: named.map(|(name, value)| (name.clone(), value.clone())).collect() }
    }

    /// What to say of two promises that are not the same, or not what was asked for.
    #[must_use]
    pub fn complaints(a: &Promise, b: &Promise, asked: Ack) -> Vec<String> {
        let mut complaints = Vec::new();
        if a.ack != b.ack || a.ack.is_none() {
            complaints.push(format!(
                "a and b do not promise the same, so their speeds are not of the same thing: a {a}; b {b}."
            ));
        }
        for (side, promise) in [("a", a), ("b", b)] {
            if promise.ack.is_some_and(|ack| ack != asked) {
                complaints.push(format!("The workload asks for ack {asked}; {side} gives {promise}."));
            }
        }
        complaints
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kafka = self.settings.contains_key(FLUSH_MESSAGES);
        f.write_str(match (self.ack, kafka) {
            (Some(Ack::Memory), _) => "memory: lost with the process",
            (Some(Ack::Written), false) => {
                "written: the kernel completed the write, survives kill -9, not power loss"
            }
            (Some(Ack::Durable), false) => "durable: flushed before each answer, survives power loss",
            (Some(Ack::Written), true) => "written: page cache of one node, survives kill -9, not power loss",
            (Some(Ack::Durable), true) => {
                "durable: fsync of one node before each answer, survives power loss"
            }
            (None, _) => "unknown: the broker does not say",
        })?;
        self.settings.iter().try_for_each(|(name, value)| write!(f, " ({name}={value})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promise(settings: &[(&str, &str)]) -> Promise {
        Promise::of(&settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn settings_of_either_broker_are_read() {
        let never = i64::MAX.to_string();
        for (settings, ack, words) in [
            (vec![("ringlog.ack", "memory")], Some(Ack::Memory), "lost with the process"),
            (vec![("ringlog.ack", "written"), ("flush.messages", "1")], Some(Ack::Written), "ringlog.ack"),
            (
                vec![("ringlog.ack", "durable")],
                Some(Ack::Durable),
                "survives power loss (ringlog.ack=durable)",
            ),
            (vec![("flush.messages", "1"), ("flush.ms", "9")], Some(Ack::Durable), "fsync of one node"),
            (vec![("flush.messages", &never)], Some(Ack::Written), "page cache of one node"),
            (vec![("flush.messages", "2")], Some(Ack::Written), "(flush.messages=2)"),
            (vec![("flush.messages", "often")], None, "unknown"),
            (vec![("ringlog.ack", "later")], None, "unknown"),
            (vec![("retention.ms", "1")], None, "unknown: the broker does not say"),
        ] {
            let promise = promise(&settings);
            assert_eq!(promise.ack, ack, "{settings:?}");
            assert!(promise.to_string().contains(words), "{settings:?}: {promise}");
            assert!(promise.settings.len() <= 1, "{promise:?}");
        }
    }

    #[test]
    fn unequal_promises_and_weaker_ones_than_asked_for_are_said() {
        let (durable, flushed) =
            (promise(&[("ringlog.ack", "durable")]), promise(&[("flush.messages", "1")]));
        assert!(Promise::complaints(&durable, &flushed, Ack::Durable).is_empty());
        let cached = promise(&[("flush.messages", "9223372036854775807")]);
        let said = Promise::complaints(&cached, &durable, Ack::Durable);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains("do not promise the same"), "{said:?}");
        assert!(said[1].contains("asks for ack durable; a gives written: page cache"), "{said:?}");
        assert_eq!(Promise::complaints(&promise(&[]), &promise(&[]), Ack::Durable).len(), 1);
    }
}
