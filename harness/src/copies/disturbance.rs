//! What TCP does beside sending once: bytes sent again, and receive queues packed tighter.
//!
//! Both copy, and neither is a strategy's: on a busy machine a segment is sent twice because its acknowledgement comes late,
//! and a reader that gets no CPU has its queue packed (`tcp_collapse`, by `skb_copy_bits`, on whichever thread runs). A count
//! during which they happened is taken again.

use std::fs;

use anyhow::{Context, Result};

/// Which counters of which file of `/proc/net`.
const COUNTERS: [(&str, &str, &str); 3] = [
    ("snmp", "Tcp:", "RetransSegs"),
    ("netstat", "TcpExt:", "TCPRcvCollapsed"),
    ("netstat", "TcpExt:", "PruneCalled"),
];

/// How often that happened so far, in this network namespace.
pub(super) fn disturbances() -> Result<u64> {
    let mut sum = 0;
    for (file, kind, name) in COUNTERS {
        let path = format!("/proc/net/{file}");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        sum += value(&text, kind, name).with_context(|| format!("{path} has no {name}"))?;
    }
    Ok(sum)
}

/// A line of names, and a line of values, both beginning with the kind.
fn value(text: &str, kind: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(kind));
    let (names, values) = (lines.next()?.split_ascii_whitespace(), lines.next()?.split_ascii_whitespace());
    names.zip(values).find(|(known, _)| *known == name)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_names() {
        let text = "Ip: Forwarding\nIp: 1\nTcp: RtoMin RetransSegs InErrs\nTcp: 200 7 0\n";
        assert_eq!(value(text, "Tcp:", "RetransSegs"), Some(7));
        assert_eq!(value(text, "Tcp:", "OutRsts"), None);
        disturbances().unwrap();
    }
}
