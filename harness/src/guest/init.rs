//! What the first process of a guest does before its own work, and how it ends.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use super::image::MODULES_DIR;
use crate::copies::probe;

/// Runs `work` as the init of a machine, hands what came of it to `say_last`, and turns the machine off.
///
/// # Errors
/// When this is not the first process of a machine.
pub fn as_init(
    work: impl FnOnce() -> Result<()>,
    say_last: impl FnOnce(Result<()>) -> Result<()>,
) -> Result<()> {
    ensure!(std::process::id() == 1, "this is for the first process of a guest, which the harness starts");
    say_last(work())?;
    reboot(RebootMode::RB_POWER_OFF)?;
    Ok(())
}

/// The file systems that every program expects.
///
/// # Errors
/// The one that could not be mounted.
pub fn mount_system() -> Result<()> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")] {
        mount_at(kind, kind, at)?;
    }
    Ok(())
}

/// Loads the modules that the archive has, in its order.
///
/// # Errors
/// The one that could not be loaded.
pub fn load_modules() -> Result<()> {
    let mut modules: Vec<PathBuf> =
        fs::read_dir(MODULES_DIR)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    modules.sort();
    for path in modules {
        let file = fs::File::open(&path)?;
        finit_module(&file, c"", ModuleInitFlags::empty())
            .with_context(|| format!("loading {}", path.display()))?;
    }
    Ok(())
}

/// Mounts.
///
/// # Errors
/// What could not be mounted where.
pub fn mount_at(source: &str, kind: &str, at: &str) -> Result<()> {
    let mounted = mount(Some(source), at, Some(kind), MsFlags::empty(), None::<&str>);
    mounted.with_context(|| format!("mounting {kind} at {at}"))
}

/// The card that is not the loopback.
///
/// # Errors
/// When there is none.
pub fn card() -> Result<String> {
    let names =
        fs::read_dir("/sys/class/net")?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    names.into_iter().find(|name| name != "lo").context("there is no network card")
}

/// Takes a card into use under an address of a network of 256.
///
/// # Errors
/// What the kernel said.
pub fn bring_up(card: &str, address: Ipv4Addr) -> Result<()> {
    probe::bring_up(card, address).with_context(|| format!("taking {card} into use as {address}"))
}
