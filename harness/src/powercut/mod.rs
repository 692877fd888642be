//! Power cuts for real: our broker in a small guest, a disk of ours that forgets, promises kept outside.
//!
//! ```text
//! host   producers, promises, judge -- forwarded port -- broker   guest
//!        disk (NBD, volatile cache) -- virtio disk ----- ext4 or xfs
//! ```
//!
//! A load runs until the disk has taken a seeded number of writes. Then the power is gone: the disk keeps of what was not
//! flushed a random part, sector by sector, and answers no more; the guest is killed. The next guest mounts what is left,
//! the broker recovers, everything is read and held against what was promised, and the load goes on, for the next cut.
//! Some cuts come while the guest recovers. The seed gives the moments, counted in writes, and what survives; when the guest
//! writes what is its own affair, so a run with the same seed is alike and not the same. What a violation was found on, the
//! image as the cut had left it, is kept.

mod client;
mod disk;
mod guest;
mod judge;
mod load;
mod rig;
mod sectors;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::Result;
use ringlog::shard::Commit;

pub use guest::{Guest, guest};

use self::disk::Honesty;
use self::rig::{Cycle, Rig};

/// The exit status when nothing was found wrong and nothing was lost that could have been.
pub const INCONCLUSIVE: u8 = 4;

/// What the guest's disk is formatted with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum FileSystem {
    /// With its journal.
    Ext4,
    /// XFS.
    Xfs,
}

impl FileSystem {
    fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
        }
    }
}

/// Cut the power of a guest with a broker in it, again and again, and look for what was promised
#[derive(Clone, Debug, clap::Args)]
pub struct PowerCut {
    /// An unpacked Debian package of a cloud kernel, for the guest
    #[arg(long, value_name = "DIRECTORY")]
    kernel: PathBuf,
    /// The broker, a static program
    #[arg(long, value_name = "PROGRAM")]
    broker: PathBuf,
    /// The file system under the broker
    #[arg(long)]
    fs: FileSystem,
    /// How often
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    cuts: u32,
    /// Whether the disk's flushes are worth something; with one that lies, success is that it was caught
    #[arg(long, default_value = "honest")]
    disk: Honesty,
    /// Where random numbers begin
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Guests side by side
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    jobs: u32,
    /// Where appends are safe first: journal, files
    #[arg(long, default_value_t = Commit::Journal)]
    commit: Commit,
    /// Where images are kept that something was lost on
    #[arg(long, value_name = "DIRECTORY", default_value = "target/powercut")]
    evidence: PathBuf,
}

/// The sums over a run.
#[derive(Default)]
struct Sums {
    cuts: u64,
    in_recovery: u64,
    cuts_that_lost: u64,
    sectors_lost: u64,
    sectors_unflushed: u64,
    acknowledged: u64,
    verifications: u64,
    verified: u64,
    violated: u64,
    recovery_ms: Vec<u64>,
    refused: BTreeMap<&'static str, u64>,
}

/// The command.
///
/// # Errors
/// When guests or disks could not be made; violations are no error but an exit status.
pub fn powercut(told: &PowerCut) -> Result<ExitCode> {
    let (begun, mut sums) = (Instant::now(), Sums::default());
    let (tell, cycles) = mpsc::channel();
    let listened = thread::scope(|scope| {
        for number in 0..told.jobs {
            let tell = tell.clone();
            let cuts = told.cuts / told.jobs + u32::from(number < told.cuts % told.jobs);
            scope.spawn(move || {
                if let Err(error) = cut_again(told, number, cuts, &tell) {
                    // Nobody listens any more when another rig has ended the run.
                    let _ = tell.send(Err(error));
                }
            });
        }
        drop(tell);
        // With nobody listening every rig ends after its guest, so that none is left running.
        sums.listen(told.disk, cycles)
    });
    listened?;
    let seconds = begun.elapsed().as_secs_f64();
    let mode =
        format!("{}, {:?} disk, commit {}, seed {}", told.fs.name(), told.disk, told.commit, told.seed);
    println!("{mode}: {}; {seconds:.0} s", sums.words());
    Ok(match (told.disk, sums.violated, sums.cuts_that_lost) {
        (Honesty::Lies, 0, _) => {
            println!("a disk that ignores flushes was not caught");
            ExitCode::FAILURE
        }
        (Honesty::Lies, ..) => {
            println!("a disk that ignores flushes was caught, as it must be");
            ExitCode::SUCCESS
        }
        (Honesty::Honest, 0, 0) => {
            println!("inconclusive: no cut lost anything that was not flushed");
            ExitCode::from(INCONCLUSIVE)
        }
        (Honesty::Honest, 0, _) => ExitCode::SUCCESS,
        (Honesty::Honest, ..) => ExitCode::FAILURE,
    })
}

type Told = Result<(Cycle, Option<PathBuf>)>;

/// One rig: so many cuts, and a last look.
fn cut_again(told: &PowerCut, number: u32, cuts: u32, tell: &mpsc::Sender<Told>) -> Result<()> {
    let mut rig = Rig::new(number, told, &told.kernel, &told.broker)?;
    let mut left = cuts;
    loop {
        let last = left == 0;
        let cycle = if last { rig.last_look()? } else { rig.cycle()? };
        let violated = !cycle.violations.are_none();
        let evidence = violated.then(|| rig.keep_evidence(cycle.seed)).transpose()?;
        // A guest that never starts is not tried for ever.
        left = left.saturating_sub(u32::from(cycle.cut.is_some() || violated));
        if tell.send(Ok((cycle, evidence))).is_err() || last {
            return Ok(());
        }
    }
}

fn show(cycle: &Cycle, number: u64, evidence: Option<&PathBuf>) {
    if cycle.verified > 0 || cycle.recovery_ms > 0 {
        println!(
            "rig {} {}: mounted in {} ms, served in {} ms, {} records verified",
            cycle.rig,
            if cycle.fresh { "new directory" } else { "after the cut" },
            cycle.mount_ms,
            cycle.recovery_ms,
            cycle.verified
        );
    }
    if let Some(cut) = &cycle.cut {
        let found = cut.survivors;
        println!(
            "cut {number} rig {} seed {:016x}: {} at write {} ({} writes, {} flushes since power on); {} sectors \
             unflushed: {} kept, {} kept as they were between, {} lost; {} batches, {} records acknowledged{}",
            cycle.rig,
            cycle.seed,
            if cycle.in_recovery { "in recovery" } else { "under load" },
            cycle.fuse,
            cut.writes,
            cut.flushes,
            found.unflushed,
            found.newest,
            found.older,
            found.lost,
            cycle.loaded.batches,
            cycle.loaded.records,
            if cycle.loaded.refused.is_empty() {
                String::new()
            } else {
                format!("; refused: {:?}", cycle.loaded.refused)
            }
        );
    }
    if let Some(kept) = evidence {
        println!(
            "VIOLATION rig {} seed {:016x}, image {}: {}",
            cycle.rig,
            cycle.seed,
            kept.display(),
            cycle.violations
        );
    }
}

impl Sums {
    /// Takes and shows what rigs say until they have ended, or a lie was caught.
    fn listen(&mut self, disk: Honesty, cycles: mpsc::Receiver<Told>) -> Result<()> {
        for said in cycles {
            let (cycle, evidence) = said?;
            self.add(&cycle);
            show(&cycle, self.cuts, evidence.as_ref());
            if self.violated > 0 && disk == Honesty::Lies {
                break;
            }
        }
        Ok(())
    }

    fn add(&mut self, cycle: &Cycle) {
        if let Some(cut) = &cycle.cut {
            self.cuts += 1;
            self.in_recovery += u64::from(cycle.in_recovery);
            self.cuts_that_lost += u64::from(cut.survivors.lost > 0);
            self.sectors_lost += cut.survivors.lost;
            self.sectors_unflushed += cut.survivors.unflushed;
        }
        self.acknowledged += cycle.loaded.records;
        self.violated += u64::from(!cycle.violations.are_none());
        if cycle.recovery_ms > 0 && !cycle.fresh {
            self.verifications += 1;
            self.verified += cycle.verified;
            self.recovery_ms.push(cycle.recovery_ms);
        }
        for (error, times) in &cycle.loaded.refused {
            *self.refused.entry(error).or_default() += times;
        }
    }

    fn words(&self) -> String {
        let mut recovery = self.recovery_ms.clone();
        recovery.sort_unstable();
        let median = recovery.get(recovery.len() / 2).copied().unwrap_or_default();
        format!(
            "{} cuts ({} in recovery), {} of them lost sectors ({} of {} unflushed); {} records acknowledged, {} starts \
             verified ({} records read), {} with violations; recovery {median} ms median, {} ms longest{}",
            self.cuts,
            self.in_recovery,
            self.cuts_that_lost,
            self.sectors_lost,
            self.sectors_unflushed,
            self.acknowledged,
            self.verifications,
            self.verified,
            self.violated,
            recovery.last().copied().unwrap_or_default(),
            if self.refused.is_empty() { String::new() } else { format!("; refused: {:?}", self.refused) }
        )
    }
}
