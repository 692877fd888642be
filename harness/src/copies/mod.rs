//! The copy ledger: how often the CPU copies a byte on each way between log and socket, by three accounts side by side.
//!
//! ```text
//! declared   what the strategy says of itself (`link`: what the link does to that)
//! observed   the mutation oracle, the kernel's report of zero-copy sends, the engine's own counters
//! counted    bytes by copy routine of the kernel, from execution breakpoints
//! ```
//!
//! `ringlog-harness copies` runs here, over the loopback; `--vm` runs the same program as the init of a small guest, where
//! breakpoints are granted and cards with and without gathering can be had. Which accounts there are is said first. Rows come
//! from the engine's two lists: a strategy added there is a row here. Accounts that differ are an exit status of their
//! own. Counting and timing are separate runs: nothing here is a measurement of speed.

mod account;
mod costs;
mod disturbance;
mod egress;
mod ground;
mod guest;
mod ingress;
mod kernel;
mod link;
mod load;
mod oracle;
mod peer;
pub(crate) mod probe;
mod show;
mod stored;
mod vm;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use ringlog::{Egress, Ingress};
use serde::{Deserialize, Serialize};

pub use guest::{Guest, guest};
pub use link::Link;
pub use peer::run as peer;

use self::account::{Lacking, Row};
use self::ground::{Ground, Tried};
use self::kernel::KernelAccount;
use self::peer::Peer;
use self::show::Show;

/// The exit status when accounts differ.
pub const DISAGREE: u8 = 3;

/// Count the copies of every strategy, by three accounts
#[derive(Clone, Debug, clap::Args)]
pub struct Copies {
    /// In a small guest, where breakpoints are granted and cards gather or do not (needs root or user namespaces, QEMU,
    /// and a guest kernel: scripts/copies has all of it)
    #[arg(long, requires = "kernel")]
    vm: bool,
    /// An unpacked Debian package of a cloud kernel, for the guest
    #[arg(long, value_name = "DIRECTORY")]
    kernel: Option<PathBuf>,
    /// Print a line of JSON for each row
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    told: Told,
    /// Where logs are kept meanwhile; O_DIRECT must work there
    #[arg(long, value_name = "DIRECTORY", default_value = "target")]
    data_dir: PathBuf,
}

/// What both a host and a guest are told.
#[derive(Clone, Debug, clap::Args)]
pub struct Told {
    /// Payload of each row, in MiB: no more than the tail cache of the engine that is counted keeps
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=24))]
    mib: u64,
    /// These strategies only
    #[arg(long, value_name = "STRATEGY", value_delimiter = ',')]
    only: Vec<String>,
    /// Put a copy that nobody declared into this egress strategy
    #[arg(long, hide = true)]
    extra_copy: Option<Egress>,
}

/// What a ledger says, in order.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
enum Line {
    /// First of all: where, and which accounts there are.
    Ground {
        /// `uname -r`.
        kernel: String,
        /// Why the kernel's account is missing, if it is.
        refused: Option<String>,
    },
    /// One strategy on one link.
    Row(Box<Row>),
    /// One that could not be tried.
    Lacking(Lacking),
}

/// The command.
///
/// # Errors
/// When something could not be measured at all; accounts that differ are no error but [`DISAGREE`].
pub fn copies(told: &Copies) -> Result<ExitCode> {
    told.told.check()?;
    let mut show = Show::new(told.json);
    match (&told.kernel, told.vm) {
        (Some(kernel), true) => vm::run(kernel, &told.told, &mut |line| show.line(line))?,
        _ => {
            let data = told.data_dir.join(format!("copies-{}", std::process::id()));
            let address = Ipv4Addr::LOCALHOST.into();
            let place = Place { link: Link::Loopback, address, card: None, data: data.clone() };
            let ran = ledger(&told.told, vec![(place, None)], &mut |line| show.line(line));
            let _ = std::fs::remove_dir_all(&data);
            ran?;
        }
    }
    Ok(show.end())
}

impl Told {
    fn check(&self) -> Result<()> {
        for name in &self.only {
            let known = name.parse::<Egress>().is_ok() || name.parse::<Ingress>().is_ok();
            ensure!(known, "there is no strategy \"{name}\"");
        }
        Ok(())
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// Where one link's rows are measured.
struct Place {
    link: Link,
    /// The server's end.
    address: IpAddr,
    /// Through which card, where it can be told to gather or not.
    card: Option<String>,
    data: PathBuf,
}

/// All rows of all links; each with the address of its peer, or a peer of our own.
fn ledger(
    told: &Told,
    places: Vec<(Place, Option<SocketAddr>)>,
    say: &mut dyn FnMut(Line) -> Result<()>,
) -> Result<()> {
    let kernel = KernelAccount::open();
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let refused = kernel.as_ref().err().map(|why| format!("{why:#}"));
    say(Line::Ground { kernel: release, refused })?;
    let kernel = kernel.ok();
    for (place, peer) in places {
        let peer = match peer {
            None => Peer::spawn()?,
            Some(address) => Peer::at(address)?,
        };
        let Place { link, address, card, data } = place;
        let data = data.join(format!("{link:?}"));
        if let Some(card) = card {
            if link == Link::NoGather {
                probe::stop_gathering(&card).with_context(|| format!("{card} shall not gather"))?;
            }
            let gathers = probe::gathers(&card)?;
            ensure!(
                gathers == (link != Link::NoGather),
                "{card} gathers: {gathers}, on link \"{}\"",
                link.name()
            );
        }
        std::fs::create_dir_all(&data).with_context(|| format!("creating {}", data.display()))?;
        let data = data.canonicalize()?;
        let ground = Ground { kernel: kernel.as_ref(), peer, link, address, data, bytes: told.mib << 20 };
        rows(told, ground, say)?;
    }
    Ok(())
}

fn rows(told: &Told, mut ground: Ground<'_>, say: &mut dyn FnMut(Line) -> Result<()>) -> Result<()> {
    let mut tell = |tried: Tried| match tried {
        Ok(row) => say(Line::Row(Box::new(row))),
        Err(lacking) => say(Line::Lacking(lacking)),
    };
    // What chooses among the others is counted under their names.
    for &egress in Egress::ALL.iter().filter(|egress| told.wants(egress.name()) && !egress.chooses()) {
        tell(egress::row(&mut ground, egress, told.extra_copy == Some(egress))?)?;
    }
    // What comes in does not depend on what the card gathers.
    if ground.link == Link::NoGather {
        return Ok(());
    }
    for &ingress in Ingress::ALL.iter().filter(|ingress| told.wants(ingress.name())) {
        tell(ingress::row(&mut ground, ingress)?)?;
    }
    for &egress in
        Egress::ALL.iter().filter(|egress| egress.carries().memory && egress.delivers() && !egress.chooses())
    {
        if told.wants(egress.name()) {
            tell(ingress::path(&mut ground, Ingress::InPlace, egress)?)?;
        }
    }
    Ok(())
}
