//! The guest's side of `copies --vm`: this program as the first and only process of a machine.
//!
//! It mounts what it needs, loads its modules, takes its links into use, keeps the ledger, says each
//! line of it on the console, and turns the machine off. `vm` is the other side.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::link::Link;
use super::{Line, Place, Told, ledger};
use crate::guest::{as_init, bring_up, card, load_modules, mount_at, mount_system};

/// The guest's end of the wire, and the host's.
pub(super) const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub(super) const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Where the host's peer takes orders.
pub(super) const PEER_PORT: u16 = 7777;
const DISK: &str = "/dev/vda";

/// Be the init of a guest: not for people.
#[derive(Clone, Debug, clap::Args)]
pub struct Guest {
    #[command(flatten)]
    told: Told,
    /// Say that this machine has started, and turn it off
    #[arg(long)]
    start_only: bool,
}

/// What is said on the console, a line of JSON each.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    /// The machine has started.
    Up,
    /// A line of the ledger.
    Said(Line),
    /// It cannot go on.
    Failed(String),
    /// That was all.
    End,
}

/// Runs as init; does not return.
///
/// # Errors
/// When it is not the init of a machine of its own.
pub fn guest(told: &Guest) -> Result<()> {
    as_init(
        || run(told),
        |ran| match ran {
            Ok(()) => say(&Word::End),
            Err(error) => say(&Word::Failed(format!("{error:#}"))),
        },
    )
}

fn say(word: &Word) -> Result<()> {
    // A line of its own whatever the kernel was saying.
    println!("\n{}", serde_json::to_string(word)?);
    Ok(())
}

fn run(told: &Guest) -> Result<()> {
    mount_system()?;
    say(&Word::Up)?;
    if told.start_only {
        return Ok(());
    }
    mount_at("tracefs", "tracefs", "/sys/kernel/tracing")?;
    load_modules()?;
    for (setting, value) in [
        // A sample for every copy, however many there are; in this order, for the second stops the first from changing.
        ("kernel/perf_event_max_sample_rate", "10000000"),
        ("kernel/perf_cpu_time_max_percent", "0"),
        ("kernel/kptr_restrict", "0"),
        // On a busy host an acknowledgement that is late is not lost, and a reader that gets no CPU has room.
        ("net/ipv4/tcp_early_retrans", "0"),
        ("net/ipv4/tcp_rmem", "4096 4194304 8388608"),
        // All that the oracle sends is queued at once.
        ("net/ipv4/tcp_wmem", "4096 1048576 4194304"),
    ] {
        fs::write(Path::new("/proc/sys").join(setting), value)
            .with_context(|| format!("setting {setting}"))?;
    }
    mount_at(DISK, "ext4", "/data")?;
    bring_up("lo", Ipv4Addr::LOCALHOST)?;
    let card = card()?;
    bring_up(&card, GUEST_ADDRESS)?;
    let outside = Some(SocketAddr::from((HOST_ADDRESS, PEER_PORT)));
    let place = |link, address: IpAddr, card: &str| Place {
        link,
        address,
        card: Some(card.to_owned()),
        data: "/data/copies".into(),
    };
    let places = vec![
        (place(Link::Loopback, Ipv4Addr::LOCALHOST.into(), "lo"), None),
        (place(Link::Gather, GUEST_ADDRESS.into(), &card), outside),
        (place(Link::NoGather, GUEST_ADDRESS.into(), &card), outside),
    ];
    ledger(&told.told, places, &mut |line| say(&Word::Said(line)))
}
