//! The host's side of `copies --vm`: a small guest in QEMU, a wire to it, the peer at this end of the wire.
//!
//! ```text
//! guest: engine, ledger -- virtio card == tap with vnet_hdr -- peer, in this process
//! ```
//!
//! A tap with `vnet_hdr` takes packets as they are, checksum to be made and pieces not put together: then the guest's card
//! gathers, and a zero-copy send is one. All of it lives in a network namespace of its own, which ends with this
//! process. The disk is a file with ext4 on it. Nothing else is given to the guest.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};

use super::guest::{HOST_ADDRESS, PEER_PORT, Word};
use super::{Line, Told, peer, probe};
use crate::guest::{Contents, Machine, Setup, archive, kernel_image};

/// The whole run, emulated.
const TIME_MAX: Duration = Duration::from_secs(280);
/// A guest that has not started by then under KVM never will.
const KVM_START_MAX: Duration = Duration::from_secs(10);
const TAP: &str = "rl-copies";
const DISK_BYTES: u64 = 1 << 30;
const MEMORY_MIB: u32 = 768;
/// What it needs to reach its disk and its card.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_net", "virtio_blk", "ext4"];

/// Runs the ledger in a guest and passes on each line of it.
pub(super) fn run(package: &Path, told: &Told, say: &mut dyn FnMut(Line) -> Result<()>) -> Result<()> {
    isolate()?;
    let place = Place::make(package)?;
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok() && place.starts_under_kvm();
    eprintln!("guest: {}, {}", place.release, if kvm { "KVM" } else { "emulated" });
    let mut words = vec!["--mib".to_owned(), told.mib.to_string()];
    words.extend(told.only.iter().flat_map(|name| ["--only".to_owned(), name.clone()]));
    words.extend(told.extra_copy.iter().flat_map(|egress| ["--extra-copy".to_owned(), egress.to_string()]));
    let started = Instant::now();
    let mut machine = place.start(kvm, &words, true)?;
    wire(&mut machine)?;
    listen(&mut machine, started + TIME_MAX, say)?;
    eprintln!("guest: {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// A network of our own: as root, or as root of a user namespace where those are allowed.
fn isolate() -> Result<()> {
    let (user, group) = (getuid(), getgid());
    if unshare(CloneFlags::CLONE_NEWNET).is_ok() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
        .context("a network namespace of its own: run as root, or allow user namespaces")?;
    for (file, line) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {user} 1")),
        ("gid_map", format!("0 {group} 1")),
    ] {
        fs::write(Path::new("/proc/self").join(file), line).with_context(|| format!("writing {file}"))?;
    }
    Ok(())
}

/// The files of a guest, gone with this.
struct Place {
    directory: PathBuf,
    image: PathBuf,
    release: String,
}

impl Place {
    fn make(package: &Path) -> Result<Place> {
        let (image, release) = kernel_image(package)?;
        let directory = std::env::temp_dir().join(format!("ringlog-copies-{}", std::process::id()));
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let place = Place { directory, image, release };
        let program = std::env::current_exe().context("finding this program")?;
        let contents = Contents { programs: &[("init", &program)], modules: &MODULES };
        fs::write(place.archive(), archive(package, &place.release, &contents)?)?;
        fs::File::create(place.disk())?.set_len(DISK_BYTES)?;
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(place.disk()).status();
        ensure!(made.context("mkfs.ext4 (package e2fsprogs)")?.success(), "mkfs.ext4 failed");
        Ok(place)
    }

    fn archive(&self) -> PathBuf {
        self.directory.join("initramfs")
    }

    fn disk(&self) -> PathBuf {
        self.directory.join("disk")
    }

    fn starts_under_kvm(&self) -> bool {
        let started = self.start(true, &["--start-only".to_owned()], false);
        started
            .and_then(|mut machine| listen(&mut machine, Instant::now() + KVM_START_MAX, &mut |_| Ok(())))
            .is_ok()
    }

    fn start(&self, kvm: bool, words: &[String], wired: bool) -> Result<Machine> {
        let disk = format!("if=none,id=disk,format=raw,file={}", self.disk().display());
        let mut devices = vec!["-drive".to_owned(), disk];
        devices.extend(["-device", "virtio-blk-pci,drive=disk"].map(str::to_owned));
        if wired {
            let tap = format!("tap,id=wire,ifname={TAP},script=no,downscript=no,vnet_hdr=on");
            devices.extend(["-netdev".to_owned(), tap]);
            devices.extend(["-device", "virtio-net-pci,netdev=wire,romfile="].map(str::to_owned));
        }
        let words = format!("copies-guest {}", words.join(" "));
        Machine::start(&Setup {
            kernel: &self.image,
            archive: &self.archive(),
            words: &words,
            memory_mib: MEMORY_MIB,
            kvm,
            devices: &devices,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Left over, it is found in the directory for temporary files.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Takes this end of the wire into use, and sets a peer there.
fn wire(machine: &mut Machine) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while if_nametoindex(TAP).is_err() {
        ensure!(Instant::now() < deadline, "QEMU has made no tap device within 10 s");
        if !machine.runs()? {
            bail!("QEMU made no tap device (is there /dev/net/tun?): {}", machine.complaint());
        }
        thread::sleep(Duration::from_millis(20));
    }
    probe::bring_up("lo", Ipv4Addr::LOCALHOST)?;
    probe::bring_up(TAP, HOST_ADDRESS).with_context(|| format!("taking {TAP} into use"))?;
    let listener = TcpListener::bind(SocketAddr::from((HOST_ADDRESS, PEER_PORT)))?;
    thread::spawn(move || {
        for control in listener.incoming().map_while(|control| control.ok()) {
            if let Err(error) = peer::serve(control) {
                eprintln!("the peer: {error:#}");
            }
        }
    });
    Ok(())
}

/// Passes on what the guest says until it has said all.
fn listen(machine: &mut Machine, deadline: Instant, say: &mut dyn FnMut(Line) -> Result<()>) -> Result<()> {
    loop {
        let Some(line) = machine.line(deadline)? else {
            bail!("the guest took too long{}", machine.told_last());
        };
        match serde_json::from_str(&line) {
            Ok(Word::Up) => {}
            Ok(Word::Said(line)) => say(line)?,
            Ok(Word::Failed(why)) => bail!("in the guest: {why}{}", machine.told_last()),
            Ok(Word::End) => return Ok(()),
            Err(_) => machine.remember(line),
        }
    }
}
