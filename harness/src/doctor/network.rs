//! The network: what the cards do for what is sent, and how much TCP keeps under way.

use std::io;

use ringlog::sys::probe::{Card, cards};

use super::finding::{Finding, Section, State};
use super::host::Host;

/// An answer to a fetch, as clients usually bound it: what a socket should take at once.
const ANSWER_BYTES: i64 = 1 << 20;

pub(super) fn look(host: &Host) -> Section {
    let mut findings = of_cards(host, cards());
    findings.push(congestion(host));
    for (name, path) in
        [("tcp_wmem", "/proc/sys/net/ipv4/tcp_wmem"), ("tcp_rmem", "/proc/sys/net/ipv4/tcp_rmem")]
    {
        findings.push(buffer(host, name, path));
    }
    Section::new("network", findings)
}

fn of_cards(host: &Host, cards: io::Result<Vec<Card>>) -> Vec<Finding> {
    match cards {
        Ok(cards) => {
            let is_down = |card: &Card| {
                host.text(&format!("/sys/class/net/{}/operstate", card.name)).as_deref() == Some("down")
            };
            cards.iter().filter(|card| !is_down(card)).map(of_card).collect()
        }
        Err(error) => vec![Finding::good("cards", format!("not told: {error}"))],
    }
}

fn of_card(card: &Card) -> Finding {
    let switch = |on: bool, name: &str| format!("{name} {}", if on { "on" } else { "off" });
    let found = format!(
        "{}, {}, {}",
        switch(card.gathers, "scatter-gather"),
        switch(card.makes_checksums, "tx checksum"),
        switch(card.cuts_segments, "TSO")
    );
    let name = format!("card {}", card.name);
    if card.name == "lo" {
        let loopback = "loopback: sendfile and splice share pages, SEND_ZC is copied late";
        return Finding::good(name, format!("{found}; {loopback}"));
    }
    let finding = Finding::good(name, found);
    let ethtool = |switches: &str| format!("sudo ethtool -K {} {switches}", card.name);
    if !card.gathers || !card.makes_checksums {
        finding.but(
            State::Degraded,
            "the kernel copies whatever is sent without a copy: sendfile, splice and SEND_ZC save nothing",
            ethtool("tx on sg on tso on"),
        )
    } else if !card.cuts_segments {
        finding.but(State::Degraded, "the CPU cuts every send into segments", ethtool("tso on"))
    } else {
        finding
    }
}

fn congestion(host: &Host) -> Finding {
    let told = |path: &str| host.text(path).unwrap_or_else(|| "not told".to_owned());
    let chosen = told("/proc/sys/net/ipv4/tcp_congestion_control");
    let offered = told("/proc/sys/net/ipv4/tcp_available_congestion_control");
    Finding::good("congestion control", format!("{chosen} (offered: {offered})"))
}

fn buffer(host: &Host, name: &str, path: &str) -> Finding {
    let Some(most) = host.number(path) else { return Finding::good(name, "not told") };
    let finding = Finding::good(name, format!("up to {most} bytes a socket"));
    if most >= ANSWER_BYTES {
        return finding;
    }
    finding.but(
        State::Degraded,
        format!("an answer of {ANSWER_BYTES} bytes does not fit at once: more waits and calls for each"),
        format!("sudo sysctl net.ipv4.{name}=\"4096 131072 4194304\""),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::host::telling;

    fn card(name: &str, gathers: bool, cuts_segments: bool) -> Card {
        Card { name: name.to_owned(), gathers, makes_checksums: true, cuts_segments }
    }

    #[test]
    fn a_card_that_does_not_gather_is_named_with_its_command() {
        let finding = of_card(&card("eth7", false, true));
        assert_eq!(finding.state, State::Degraded);
        assert_eq!(
            (finding.name.as_str(), finding.cure.as_str()),
            ("card eth7", "sudo ethtool -K eth7 tx on sg on tso on")
        );
        assert_eq!(of_card(&card("eth7", true, false)).cure, "sudo ethtool -K eth7 tso on");
        assert_eq!(of_card(&card("eth7", true, true)).state, State::Good);
        assert!(of_card(&card("lo", true, true)).found.contains("copied late"));
    }

    #[test]
    fn cards_that_are_down_are_left_out_and_small_buffers_said() {
        let (_root, host) = telling(&[
            ("sys/class/net/eth1/operstate", "down\n"),
            ("sys/class/net/lo/operstate", "unknown\n"),
            ("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t262144\n"),
            ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n"),
        ]);
        let seen = of_cards(&host, Ok(vec![card("eth1", true, true), card("lo", true, true)]));
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].name, "card lo");
        assert!(of_cards(&host, Err(io::ErrorKind::PermissionDenied.into()))[0].found.contains("not told"));
        let small = buffer(&host, "tcp_wmem", "/proc/sys/net/ipv4/tcp_wmem");
        assert!(small.state == State::Degraded && small.found.contains("262144"), "{small:?}");
        assert_eq!(buffer(&host, "tcp_rmem", "/proc/sys/net/ipv4/tcp_rmem").state, State::Good);
    }
}
