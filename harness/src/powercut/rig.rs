//! One guest after another on one disk: load, cut, recover, judge.

use std::fs;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::client::Client;
use super::disk::{Cut, Disk};
use super::guest::{ADDRESS, BROKER, PORT, Word};
use super::judge::{Account, Kind, Values, Violations};
use super::load::{Load, Loaded, PARTITIONS, PRODUCERS, TOPIC};
use super::{FileSystem, PowerCut};
use crate::guest::{Contents, Machine, Setup, archive, kernel_image};
use ringlog_broker::wire::ErrorCode;

const DISK_BYTES: u64 = 1 << 30;
const MEMORY_MIB: u32 = 640;
/// Cuts of one data directory; then a new one, so that reading all of it stays short.
const CUTS_OF_A_DIRECTORY: u32 = 12;
/// And of so many records.
const RECORDS_MAX: u64 = 100_000;
/// Segments roll under the load.
const SEGMENT_BYTES: u64 = 2 << 20;
/// A fuse is of so many writes, most of them short ones; before that few producers have been answered.
const FUSE_WRITES: Range<f64> = 100.0..4000.0;
/// During a recovery, that does not write as much.
const RECOVERY_FUSE_WRITES: Range<f64> = 1.0..60.0;
/// One recovery in so many has a fuse of its own.
const RECOVERY_CUTS: u32 = 4;
/// From the start of a guest to a broker that listens, emulated on a busy machine.
const START_MAX: Duration = Duration::from_secs(180);
/// A load that has not written so much by then is stuck.
const LOAD_MAX: Duration = Duration::from_secs(120);
/// After a cut: answers that had left before it arrive.
const DRAIN: Duration = Duration::from_millis(100);
const ANSWER_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// Everything that stays the same from guest to guest.
pub(super) struct Rig {
    number: u32,
    told: PowerCut,
    place: PathBuf,
    kernel: PathBuf,
    random: fastrand::Rng,
    /// Data directories so far.
    run: u32,
    account: Account,
    cuts: u32,
    /// The topic is there.
    created: bool,
    /// The next guest has a new directory.
    given_up: bool,
}

/// What one guest came to, from its start to its cut.
#[derive(Default)]
pub(super) struct Cycle {
    /// Which rig.
    pub rig: u32,
    /// Where its random numbers began.
    pub seed: u64,
    /// Writes from the lighting of the fuse to the cut.
    pub fuse: u64,
    /// The data directory is a new one.
    pub fresh: bool,
    /// The power went before the broker was up.
    pub in_recovery: bool,
    /// Records found after the cut before this guest.
    pub verified: u64,
    /// The file system's journal, and the broker's start.
    pub mount_ms: u64,
    pub recovery_ms: u64,
    /// What was promised before the cut.
    pub loaded: Loaded,
    /// The cut that ended it.
    pub cut: Option<Cut>,
    /// What is wrong, of what the cut before this guest left.
    pub violations: Violations,
}

impl Rig {
    pub fn new(number: u32, told: &PowerCut, kernel_package: &Path, broker: &Path) -> Result<Rig> {
        let (kernel, release) = kernel_image(kernel_package)?;
        let place = std::env::temp_dir().join(format!("ringlog-powercut-{}-{number}", std::process::id()));
        fs::create_dir_all(&place).with_context(|| format!("creating {}", place.display()))?;
        let random = fastrand::Rng::with_seed(told.seed ^ u64::from(number) << 32);
        let account = Account::new(Values::new(0, told.seed), PARTITIONS, PRODUCERS);
        let rig = Rig {
            number,
            told: told.clone(),
            place,
            kernel,
            random,
            run: 0,
            account,
            cuts: 0,
            created: false,
            given_up: false,
        };
        let init = std::env::current_exe().context("finding this program")?;
        let modules = ["virtio_pci", "virtio_net", "virtio_blk", "crc32c_generic", told.fs.name()];
        let contents = Contents { programs: &[("init", &init), (BROKER, broker)], modules: &modules };
        fs::write(rig.archive(), archive(kernel_package, &release, &contents)?)?;
        Ok(rig)
    }

    fn archive(&self) -> PathBuf {
        self.place.join("initramfs")
    }

    fn image(&self) -> PathBuf {
        self.place.join("image")
    }

    /// What the last cut left, as nothing has touched it since.
    fn evidence(&self) -> PathBuf {
        self.place.join("evidence")
    }

    /// One guest: what the cut before it left is judged, then it is loaded and cut. Not cut where the directory has served
    /// its time: then this was the last look at it, and the next guest has a new one.
    pub fn cycle(&mut self) -> Result<Cycle> {
        let old = self.cuts >= CUTS_OF_A_DIRECTORY || self.account.required() > RECORDS_MAX;
        if old && !self.given_up {
            self.given_up = true;
            return self.last_look();
        }
        let fresh = self.run == 0 || self.given_up;
        if fresh {
            self.make_disk()?;
        }
        let seed = self.random.u64(..);
        let mut cycle = Cycle { rig: self.number, seed, fresh, ..Cycle::default() };
        self.random = fastrand::Rng::with_seed(seed);
        let in_recovery = !fresh && self.random.u32(0..RECOVERY_CUTS) == 0;
        self.live(in_recovery, true, &mut cycle)?;
        Ok(cycle)
    }

    /// One guest more, to judge what the last cut left.
    pub fn last_look(&mut self) -> Result<Cycle> {
        let mut cycle = Cycle { rig: self.number, seed: self.random.u64(..), ..Cycle::default() };
        self.live(false, false, &mut cycle)?;
        Ok(cycle)
    }

    /// Gives the data up, so that the next cycle begins with a new directory; the image is kept and named.
    pub fn keep_evidence(&mut self, seed: u64) -> Result<PathBuf> {
        let kept = self.told.evidence.join(format!("powercut-{}-{seed:016x}.image", self.told.fs.name()));
        fs::create_dir_all(&self.told.evidence)?;
        copy_sparse(&self.evidence(), &kept)?;
        self.given_up = true;
        Ok(kept)
    }

    fn make_disk(&mut self) -> Result<()> {
        let image = self.image();
        fs::File::create(&image)?.set_len(DISK_BYTES)?;
        let (program, words): (_, &[&str]) = match self.told.fs {
            FileSystem::Ext4 => ("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]),
            FileSystem::Xfs => ("mkfs.xfs", &["-q", "-f"]),
        };
        let made = Command::new(program).args(words).arg(&image).status();
        ensure!(
            made.with_context(|| format!("{program} (package e2fsprogs or xfsprogs)"))?.success(),
            "{program} failed"
        );
        self.run += 1;
        self.account = Account::new(self.values(), PARTITIONS, PRODUCERS);
        (self.cuts, self.created, self.given_up) = (0, false, false);
        Ok(())
    }

    fn values(&self) -> Values {
        Values::new(self.run, self.told.seed)
    }

    fn fuse(&mut self, writes: Range<f64>) -> u64 {
        (writes.start * (writes.end / writes.start).powf(self.random.f64())).round() as u64
    }

    fn live(&mut self, cut_in_recovery: bool, load: bool, cycle: &mut Cycle) -> Result<()> {
        copy_sparse(&self.image(), &self.evidence())?;
        let socket = self.place.join("disk");
        let disk = Disk::serve(&self.image(), &socket, self.told.disk, self.random.u64(..))?;
        if cut_in_recovery {
            cycle.fuse = self.fuse(RECOVERY_FUSE_WRITES);
            disk.light(cycle.fuse);
        }
        // An address of its own, so that no other rig and no client can be on its port.
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = SocketAddr::from(([127, 100 + self.number as u8, high, low], PORT));
        let drive =
            format!("if=none,id=disk,format=raw,cache=none,file=nbd+unix:///?socket={}", socket.display());
        let net = format!("user,id=wire,hostfwd=tcp:{address}-{ADDRESS}:{PORT}");
        let devices = [
            "-drive",
            &drive,
            "-device",
            "virtio-blk-pci,drive=disk",
            "-netdev",
            &net,
            "-device",
            "virtio-net-pci,netdev=wire,romfile=",
        ];
        let commit = self.told.commit;
        let words = format!(
            "powercut-guest --fs {} --commit {commit} --segment-bytes {SEGMENT_BYTES}",
            self.told.fs.name()
        );
        let mut machine = Machine::start(&Setup {
            kernel: &self.kernel,
            archive: &self.archive(),
            words: &words,
            memory_mib: MEMORY_MIB,
            kvm: false,
            devices: &devices.map(str::to_owned),
        })?;
        cycle.cut = self.until_it_serves(&disk, &mut machine, cycle)?;
        if cycle.cut.is_some() {
            cycle.in_recovery = true;
        } else if cycle.violations.are_none() {
            match self.judge(address, cycle) {
                // What was lost once is not written over.
                Ok(()) if load && cycle.violations.are_none() => {
                    cycle.cut = self.load(address, &disk, &mut machine, cycle)?
                }
                Ok(()) => {}
                Err(error) => {
                    cycle.violations.add(Kind::Unreadable, || format!("{error:#}{}", machine.told_last()))
                }
            }
        }
        self.cuts += u32::from(cycle.cut.is_some());
        drop(machine);
        if cycle.cut.is_none() {
            // Without its guest the disk ends, and lets go of the image.
            disk.cut(ANSWER_MAX)?;
        }
        Ok(())
    }

    /// Waits for the broker, or for the cut.
    fn until_it_serves(
        &mut self,
        disk: &Disk,
        machine: &mut Machine,
        cycle: &mut Cycle,
    ) -> Result<Option<Cut>> {
        let deadline = Instant::now() + START_MAX;
        loop {
            if let Some(cut) = disk.cut(Duration::ZERO)? {
                return Ok(Some(cut));
            }
            let line = match machine.line(Instant::now() + LOOK) {
                Ok(None) if Instant::now() < deadline => continue,
                Ok(None) => {
                    cycle.violations.add(Kind::Down, || format!("it took too long{}", machine.told_last()));
                    return Ok(None);
                }
                Ok(Some(line)) => line,
                Err(error) => {
                    cycle.violations.add(Kind::Down, || error.to_string());
                    return Ok(None);
                }
            };
            match serde_json::from_str(&line) {
                Ok(Word::Up) => {}
                Ok(Word::Mounted { ms }) => cycle.mount_ms = ms,
                Ok(Word::Serving { ms }) => {
                    cycle.recovery_ms = ms;
                    disk.put_out();
                    // It may have burnt down before that.
                    return disk.cut(Duration::ZERO);
                }
                // A guest whose disk is silent does not fail, it waits; one that fails does so by what it has read.
                Ok(Word::Failed(why)) => {
                    cycle.violations.add(Kind::Down, || format!("{why}{}", machine.told_last()));
                    return Ok(None);
                }
                Err(_) => machine.remember(line),
            }
        }
    }

    fn judge(&mut self, address: SocketAddr, cycle: &mut Cycle) -> Result<()> {
        let mut client = Client::open(address, TOPIC, ANSWER_MAX)?;
        if !self.created {
            client.create_topic(PARTITIONS)?;
            self.created = true;
        }
        for partition in 0..PARTITIONS {
            let mut reading = self.account.read(partition);
            loop {
                let asked = reading.next_offset();
                let fetched = client.fetch(partition, asked)?;
                if fetched.error != ErrorCode::None {
                    let error = fetched.error.name();
                    reading.note(Kind::Unreadable, || error.to_owned());
                    break;
                }
                let end = fetched.high_watermark;
                self.account.take(&mut reading, fetched.records);
                if reading.next_offset() >= end {
                    break;
                }
                if reading.next_offset() <= asked {
                    reading
                        .note(Kind::Unreadable, || format!("no records, though the high watermark is {end}"));
                    break;
                }
            }
            cycle.verified += reading.next_offset() as u64;
            cycle.violations.append(self.account.finish(reading));
        }
        Ok(())
    }

    /// Loads until the power goes.
    fn load(
        &mut self,
        address: SocketAddr,
        disk: &Disk,
        machine: &mut Machine,
        cycle: &mut Cycle,
    ) -> Result<Option<Cut>> {
        cycle.fuse = self.fuse(FUSE_WRITES);
        let seed = self.random.u64(..);
        let load = Load::start(address, &self.account, self.values(), seed, || disk.light(cycle.fuse))?;
        let deadline = Instant::now() + LOAD_MAX;
        let cut = loop {
            if let Some(cut) = disk.cut(LOOK)? {
                break Some(cut);
            }
            match machine.line(Instant::now()) {
                Ok(None) if Instant::now() < deadline => {}
                Ok(None) => {
                    cycle.violations.add(Kind::Down, || format!("the load is stuck{}", machine.told_last()));
                    break None;
                }
                Ok(Some(line)) if matches!(serde_json::from_str(&line), Ok(Word::Failed(_))) => {
                    cycle.violations.add(Kind::Down, || format!("under load: {line}{}", machine.told_last()));
                    break None;
                }
                Ok(Some(line)) => machine.remember(line),
                Err(error) => {
                    cycle.violations.add(Kind::Down, || error.to_string());
                    break None;
                }
            }
        };
        std::thread::sleep(DRAIN);
        cycle.loaded = load.end(&mut self.account, &mut cycle.violations);
        Ok(cut)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Left over, it is found in the directory for temporary files.
        let _ = fs::remove_dir_all(&self.place);
    }
}

fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("--sparse=always").args([from, to]).status()?;
    ensure!(copied.success(), "copying {} to {} failed", from.display(), to.display());
    Ok(())
}
