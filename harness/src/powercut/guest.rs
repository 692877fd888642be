//! The guest's side: the disk mounted, the broker started on it, nothing else.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ringlog::shard::Commit;
use serde::{Deserialize, Serialize};

use crate::guest::{as_init, bring_up, card, load_modules, mount_at, mount_system};

/// The guest's address in QEMU's own network, which forwards connections to it.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Where the broker listens.
pub(super) const PORT: u16 = 9092;
/// The broker's name in the archive.
pub(super) const BROKER: &str = "broker";
const DISK: &str = "/dev/vda";

/// Be the init of a guest: not for people. Nothing has a default, for the kernel drops what stands behind a second `--`.
#[derive(Clone, Debug, clap::Args)]
pub struct Guest {
    /// The disk's file system
    #[arg(long)]
    fs: String,
    /// Where appends are safe first
    #[arg(long)]
    commit: Commit,
    /// Where segments are sealed
    #[arg(long)]
    segment_bytes: u64,
}

/// What is said on the console, a line of JSON each.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    /// The machine has started; the disk comes next.
    Up,
    /// The file system has replayed its journal.
    Mounted {
        /// How long that took.
        ms: u64,
    },
    /// The broker listens.
    Serving {
        /// How long that took it from its start.
        ms: u64,
    },
    /// It cannot go on.
    Failed(String),
}

/// Runs as init; does not return.
///
/// # Errors
/// When it is not the init of a machine of its own.
pub fn guest(told: &Guest) -> Result<()> {
    as_init(
        || run(told),
        |ran| {
            say(&Word::Failed(ran.err().map_or("the broker ended".to_owned(), |error| format!("{error:#}"))))
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
    load_modules()?;
    bring_up("lo", Ipv4Addr::LOCALHOST)?;
    bring_up(&card()?, ADDRESS)?;
    say(&Word::Up)?;
    let begun = Instant::now();
    mount_at(DISK, &told.fs, "/data")?;
    say(&Word::Mounted { ms: begun.elapsed().as_millis() as u64 })?;
    let begun = Instant::now();
    let mut broker = Command::new(format!("/{BROKER}"))
        .args(["serve", "--data-dir", "/data/log", "--ack", "durable"])
        .args(["--listen", &format!("0.0.0.0:{PORT}"), "--advertise", &format!("{ADDRESS}:{PORT}")])
        .args(["--commit", &told.commit.to_string(), "--segment-bytes", &told.segment_bytes.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the broker")?;
    let lines = broker.stdout.take().context("the broker has no standard output")?;
    for line in BufReader::new(lines).lines() {
        let line = line?;
        println!("broker: {line}");
        if line.starts_with("listening on") {
            say(&Word::Serving { ms: begun.elapsed().as_millis() as u64 })?;
        }
    }
    bail!("the broker ended: {}", broker.wait()?)
}
