//! `ringlog-harness doctor`: what this host offers and refuses, what the engine will choose, what would improve it.
//!
//! ```text
//! Host (texts of /proc and /sys) + ringlog::sys::probe (asked by doing) -> sections of findings -> page or JSON
//! ```
//!
//! Nothing is asked twice: what the engine finds out by itself (set-up of a ring, flushes, cores) is asked of its own code.
//! It needs no privilege and changes nothing; a question that is not answered is a finding like any other.

mod choice;
mod counting;
mod cpus;
mod disk;
mod finding;
mod host;
mod memlock;
mod memory;
mod network;
mod page;
mod ring;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use ringlog::ShardConfig;
use ringlog::sys::UringError;
use ringlog::sys::probe::{self, RingOffer};
use ringlog::sys::topology::usable_cores;
use serde::{Deserialize, Serialize};

pub use self::choice::Choice;
pub use self::finding::{Finding, Section, State};
pub use self::host::Host;
use self::memlock::Arena;

/// Of the shape of the JSON; it changes when a reader of the old one would go wrong.
const FORMAT: u32 = 1;

/// What to look at, and how to tell.
#[derive(Args)]
pub struct Doctor {
    /// Where a log would be kept; made by nobody here
    #[arg(long, default_value = ".")]
    data_dir: PathBuf,
    /// Tell it as JSON
    #[arg(long)]
    json: bool,
}

/// All that was found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Examination {
    /// Of this shape.
    pub format: u32,
    /// The kernel's release.
    pub kernel: String,
    /// The directory that was looked at.
    pub data_dir: String,
    /// Whether the engine can run here at all.
    pub can_run: bool,
    /// What was found.
    pub sections: Vec<Section>,
    /// What the engine will choose; nothing where there is no io_uring.
    pub choice: Option<Choice>,
}

impl Examination {
    /// Every finding.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.sections.iter().flat_map(|section| &section.findings)
    }
}

/// Looks around and says what there is. Whether the engine can run here.
///
/// # Errors
/// When standard output cannot be written to.
pub fn doctor(told: &Doctor) -> Result<bool> {
    let arena = arena()?;
    let seen = examine(&Host::here(), &probe::ring(arena.bytes()), arena, &told.data_dir)?;
    if told.json {
        println!("{}", serde_json::to_string_pretty(&seen)?);
    } else {
        print!("{}", page::page(&seen));
    }
    Ok(seen.can_run)
}

/// Of an engine with the usual settings.
fn arena() -> Result<Arena> {
    Ok(Arena { shards: usable_cores()?.len(), bytes_each: ShardConfig::new("").arena_bytes_max })
}

fn examine(
    host: &Host,
    offer: &Result<RingOffer, UringError>,
    arena: Arena,
    data_dir: &Path,
) -> Result<Examination> {
    let disk = disk::look(host, data_dir);
    let choice = match offer {
        Ok(offer) => Some(Choice::of(usable_cores()?, offer, arena, &disk)),
        Err(_) => None,
    };
    Ok(Examination {
        format: FORMAT,
        kernel: host.release(),
        data_dir: std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned()).display().to_string(),
        can_run: offer.is_ok() && disk.is_usable,
        sections: vec![
            ring::look(host, offer, arena),
            disk.section,
            counting::look(host),
            network::look(host),
            cpus::look(host),
            memory::look(host, arena),
        ],
        choice,
    })
}

#[cfg(test)]
mod tests {
    use super::host::telling;
    use super::*;

    #[test]
    fn without_io_uring_the_rest_is_told_all_the_same() {
        let (root, host) = telling(&[
            ("proc/sys/kernel/io_uring_disabled", "2\n"),
            ("proc/sys/kernel/osrelease", "6.8.0-31-generic\n"),
        ]);
        let offer = Err(UringError::Forbidden { disabled: "2".to_owned() });
        let arena = Arena { shards: 2, bytes_each: 512 << 20 };
        let seen = examine(&host, &offer, arena, root.path()).unwrap();
        assert!(!seen.can_run && seen.choice.is_none());
        assert_eq!(seen.sections.len(), 6);
        let page = page::page(&seen);
        assert!(page.contains("kernel.io_uring_disabled is 2") && page.contains("CANNOT run"), "{page}");
        assert!(page.contains("do: sudo sysctl kernel.io_uring_disabled=0"), "{page}");
        assert!(page.lines().all(|line| line.chars().count() <= 100), "{page}");
    }
}
