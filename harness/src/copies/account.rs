//! Three accounts of one strategy's copies on one link, and whether they agree.
//!
//! Plain data: others fill it in (`egress`, `ingress`, `path`), `show` prints it, and a guest sends it as a line of JSON.
//! All numbers are bytes as they were counted; ratios are made here, at the end.
//!
//! ```text
//! counted  = (bytes by kernel routine for the server - control bytes) / payload + copies in user space / payload
//! expected = declared copies on this link + stated bytes / payload
//! ```
//!
//! Control bytes are what the protocol puts around the payload. They are copied too, once for a receive, once or twice for
//! a send, and taken off exactly. Stated bytes are payload that went a longer way than its strategy's, as its own
//! counters say: the head of a batch that was received before it was known where the batch belongs, and the block that a
//! unit of writes ends in.

use serde::{Deserialize, Serialize};

use super::costs::Costs;
use super::kernel::{Counted, Sides};
use super::link::Link;

/// Accounts agree when they are no more than this apart, in copies per payload byte.
pub const TOLERANCE: f64 = 0.01;
/// Stated bytes beyond this part of the payload are no remainder any more, but another way.
const STATED_SHARE_MAX: f64 = 0.1;

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the log to a socket.
    Egress,
    /// From a socket to the log.
    Ingress,
    /// From the producer's socket to the consumer's.
    Path,
}

/// One strategy on one link.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Which way.
    pub direction: Direction,
    /// By which strategy; on a whole path, by which two.
    pub strategy: String,
    /// By what the bytes left or came.
    pub link: Link,
    /// Record bytes moved.
    pub payload_bytes: u64,
    /// Received beside these.
    pub control_in_bytes: u64,
    /// Sent beside these.
    pub control_out_bytes: u64,
    /// The first account.
    pub declared: Declared,
    /// The second.
    pub observed: Observed,
    /// The third, where the kernel gives it.
    pub counted: Option<Counted>,
    /// What it cost beside copies.
    pub costs: Costs,
    /// Times that TCP copied for reasons of its own all the same.
    pub disturbances: u64,
}

/// A strategy that could not be tried.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Lacking {
    /// Which way.
    pub direction: Direction,
    /// Its name.
    pub strategy: String,
    /// On which link.
    pub link: Link,
    /// What is lacking.
    pub why: String,
}

/// The first account: what the strategy says of itself, on this link.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Declared {
    /// CPU copies per payload byte.
    pub copies: f64,
    /// Of these, in user space.
    pub user_copies: f64,
    /// Whether source and socket share pages.
    pub shares_pages: bool,
}

/// The second account: what can be seen without privilege.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Observed {
    /// Payload that went by the strategy's own means, by the engine's counters.
    pub carried_bytes: u64,
    /// Payload bytes copied in user space, by the engine's counters.
    pub user_copied_bytes: u64,
    /// Of these, those that are stated and not the strategy's.
    pub stated_bytes: u64,
    /// What a peer saw of sources that were overwritten after they were sent.
    pub oracle: Option<Oracle>,
    /// What the kernel said of zero-copy sends.
    pub zero_copy_report: Option<ZeroCopyReport>,
}

/// What overwriting the source showed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Oracle {
    /// New bytes came: the pages were shared.
    Shared,
    /// Old bytes came: there was a copy.
    Copied,
    /// There is nothing outside that could be overwritten.
    Silent(String),
}

/// Of so many zero-copy sends, those that the kernel copied after all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ZeroCopyReport {
    /// Sends.
    pub sends: u64,
    /// Of these, copied.
    pub copied: u64,
}

impl Row {
    /// What the third account should find.
    #[must_use]
    pub fn expected(&self) -> f64 {
        self.declared.copies + self.per_byte(self.observed.stated_bytes)
    }

    /// Copies per payload byte by the third account, with those in user space that only the second knows.
    #[must_use]
    pub fn copies(&self) -> Option<f64> {
        let kernel: u64 =
            self.counted.as_ref()?.iter().map(|(name, sides)| self.of_server(name, *sides)).sum();
        let control =
            self.control_in_bytes as f64 + self.control_out_bytes as f64 * self.link.copies_of_a_send();
        let kernel = kernel as f64 - control;
        Some((kernel + self.observed.user_copied_bytes as f64) / self.payload_bytes as f64)
    }

    /// What a routine copied for the server. Packets on their way are nobody's thread's: they are who sends them, which
    /// is the peer where bytes only come in.
    #[must_use]
    pub fn of_server(&self, routine: &str, sides: Sides) -> u64 {
        match self.direction {
            _ if !routine.starts_with("skb_") => sides.server,
            Direction::Ingress => 0,
            Direction::Egress | Direction::Path => sides.server + sides.peer + sides.others,
        }
    }

    /// Bytes per payload byte.
    #[must_use]
    pub fn per_byte(&self, bytes: u64) -> f64 {
        bytes as f64 / self.payload_bytes as f64
    }

    /// Where the accounts differ, in words; nothing when they agree.
    #[must_use]
    pub fn disagreements(&self) -> Vec<String> {
        let mut found = Vec::new();
        let Row { declared, observed, payload_bytes, .. } = self;
        if observed.carried_bytes != *payload_bytes {
            found.push(format!(
                "it carried {} of {payload_bytes} bytes, others the rest",
                observed.carried_bytes
            ));
        }
        if self.per_byte(observed.stated_bytes) > STATED_SHARE_MAX {
            found.push(format!("{} of {payload_bytes} bytes went another way", observed.stated_bytes));
        }
        let user = self.per_byte(observed.user_copied_bytes.saturating_sub(observed.stated_bytes));
        if (user - declared.user_copies).abs() > TOLERANCE {
            found.push(format!(
                "declared {:.3} copies in user space, observed {user:.3}",
                declared.user_copies
            ));
        }
        match &observed.oracle {
            Some(Oracle::Shared) if !declared.shares_pages => {
                found.push("declared copied, but overwriting the source changed what came".to_owned());
            }
            Some(Oracle::Copied) if declared.shares_pages => {
                found.push("declared shared, but overwriting the source changed nothing".to_owned());
            }
            _ => {}
        }
        if let Some(ZeroCopyReport { sends, copied }) = observed.zero_copy_report
            && self.link.reports_truly()
        {
            let expected = if self.link == Link::Loopback { sends } else { 0 };
            if copied != expected || sends == 0 {
                found.push(format!("{copied} of {sends} zero-copy sends were copied, expected {expected}"));
            }
        }
        if let Some(copies) = self.copies()
            && (copies - self.expected()).abs() > TOLERANCE
        {
            found.push(format!("expected {:.3} copies a byte, counted {copies:.3}", self.expected()));
        }
        found
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// `sendfile` over a card that gathers, as it should be: 1,000,000 bytes of payload, 640 around them.
    pub(crate) fn agreeing() -> Row {
        let server = |bytes| Sides { server: bytes, ..Sides::default() };
        Row {
            direction: Direction::Egress,
            strategy: "sendfile".to_owned(),
            link: Link::Gather,
            payload_bytes: 1_000_000,
            control_in_bytes: 0,
            control_out_bytes: 640,
            declared: Declared { copies: 0.0, user_copies: 0.0, shares_pages: true },
            observed: Observed {
                carried_bytes: 1_000_000,
                oracle: Some(Oracle::Shared),
                ..Observed::default()
            },
            counted: Some([("_copy_from_iter".to_owned(), server(640))].into()),
            costs: Costs::default(),
            disturbances: 0,
        }
    }

    #[test]
    fn accounts_that_agree_are_passed() {
        let row = agreeing();
        assert_eq!(row.copies(), Some(0.0));
        assert!(row.disagreements().is_empty(), "{:?}", row.disagreements());
    }

    #[test]
    fn control_bytes_are_taken_off_and_not_rounded_away() {
        let mut row = agreeing();
        row.control_out_bytes = 50_000;
        row.counted =
            Some([("_copy_from_iter".to_owned(), Sides { server: 50_000, peer: 9, others: 9 })].into());
        assert_eq!(row.copies(), Some(0.0));
        row.control_out_bytes = 0;
        assert_eq!(row.copies(), Some(0.05));
        assert_eq!(row.disagreements(), ["expected 0.000 copies a byte, counted 0.050"]);
    }

    #[test]
    fn each_account_can_disagree_by_itself() {
        let change = |change: fn(&mut Row)| {
            let mut row = agreeing();
            change(&mut row);
            row.disagreements()
        };
        for (words, found) in [
            ("carried 7 of", change(|row| row.observed.carried_bytes = 7)),
            ("went another way", change(|row| row.observed.stated_bytes = 200_000)),
            ("in user space", change(|row| row.observed.user_copied_bytes = 20_000)),
            ("changed nothing", change(|row| row.observed.oracle = Some(Oracle::Copied))),
            ("changed what came", change(|row| row.declared.shares_pages = false)),
            (
                "zero-copy sends",
                change(|row| row.observed.zero_copy_report = Some(ZeroCopyReport { sends: 9, copied: 1 })),
            ),
            ("counted", change(|row| row.declared.copies = 1.0)),
        ] {
            assert!(found.iter().any(|found| found.contains(words)), "{words}: {found:?}");
        }
    }

    #[test]
    fn packets_put_together_are_the_senders_whoever_ran() {
        let mut row = agreeing();
        row.link = Link::NoGather;
        row.declared.copies = 1.0;
        let sides = Sides { server: 400_000, peer: 0, others: 600_640 };
        row.counted.as_mut().unwrap().insert("skb_copy_bits".to_owned(), sides);
        assert!(row.disagreements().is_empty(), "{:?}", row.disagreements());
        row.direction = Direction::Ingress;
        assert_eq!(row.of_server("skb_copy_bits", sides), 0);
        assert_eq!(row.of_server("_copy_to_iter", sides), 400_000);
    }
}
