//! Ring or runtime: the same server's work done by blocking threads, epoll, a runtime on io_uring, and our ring.
//!
//! ```text
//! produce    socket -(recv)-> memory, CRC, an answer of about 64 bytes -(O_DIRECT, 1 MiB, 4 under way)-> one file
//! catch-up   files made beforehand -(read through the page cache)-> memory -> socket, up to 1 MiB an answer
//! ```
//!
//! It is the floor's work ([`crate::floor`]), and our ring's arm *is* the floor. What the others share with it is taking
//! requests apart, the CRC, the answers, the list of batches (`work`) and how the file is prepared (`sink`); an arm is
//! one file that says how bytes are waited for and moved. All threads of an arm run on the server's core.
//!
//! | arm | waits in | the file is written, and read, by |
//! |---|---|---|
//! | `threads` | `read`, a thread a connection | the connection's thread, four at once; the kernel reads ahead as advised |
//! | `epoll` | `epoll_wait`, one thread | four threads beside it |
//! | `tokio-uring` | its own loop: epoll on the ring's descriptor | the ring |
//! | `ring` | `io_uring_enter` | the ring |
//!
//! Two things differ that are no waiting and no moving: our ring's memory is made of huge pages where there are some
//! (`ring:small-pages` is without), and it is registered (`ring:unregistered`). What was found is in `ARMS.md`.

#[cfg(not(feature = "tokio-uring"))]
mod absent;
mod counting;
mod epoll;
mod options;
mod run;
#[cfg(feature = "tokio-uring")]
mod runtime;
mod sink;
mod tables;
mod threads;
mod work;

use std::fmt;
use std::io::Write;
use std::net::TcpListener;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result, ensure};
use ringlog::sys::topology::pin_to;

#[cfg(not(feature = "tokio-uring"))]
use absent as runtime;
pub use options::RingOption;
pub use run::{Arms, arms};
use work::Work;

use crate::floor::{ServeFloor, WRITES, obey, serve_floor_on};

/// A way to wait for bytes and to move them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arm {
    /// Our ring.
    Ring,
    /// A blocking thread for each connection.
    Threads,
    /// One loop around `epoll_wait`.
    Epoll,
    /// The runtime of that name.
    TokioUring,
}

impl Arm {
    /// All, whether built in or not.
    pub const ALL: [Arm; 4] = [Arm::Ring, Arm::Threads, Arm::Epoll, Arm::TokioUring];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Arm::Ring => "ring",
            Arm::Threads => "threads",
            Arm::Epoll => "epoll",
            Arm::TokioUring => "tokio-uring",
        }
    }

    /// Whether this build has it.
    #[must_use]
    pub fn is_built(self) -> bool {
        self != Arm::TokioUring || cfg!(feature = "tokio-uring")
    }

    /// Those that this build has.
    #[must_use]
    pub fn built() -> Vec<Arm> {
        Arm::ALL.into_iter().filter(|arm| arm.is_built()).collect()
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arm {
    type Err = String;

    fn from_str(name: &str) -> Result<Arm, String> {
        let names = || Arm::ALL.map(Arm::name).join(", ");
        let arm = Arm::ALL.into_iter().find(|arm| arm.name() == name);
        let arm = arm.ok_or_else(|| format!("there is no arm `{name}`; there are: {}", names()))?;
        match arm.is_built() {
            true => Ok(arm),
            false => Err(format!("this build has no arm `{arm}`: build with `--features tokio-uring`")),
        }
    }
}

/// Serve as one arm: not for people.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeArm {
    /// Which
    #[arg(long)]
    arm: Arm,
    /// How our ring is set up
    #[arg(long)]
    ring_option: Option<RingOption>,
    /// The core that a submission thread of the kernel's spins on
    #[arg(long)]
    sqpoll_core: Option<u32>,
    #[command(flatten)]
    told: ServeFloor,
}

/// The arm's life: until its standard input ends.
///
/// # Errors
/// When the core is not allowed, or there is no file, port or ring to be had.
pub fn serve_arm(told: &ServeArm) -> Result<()> {
    let ServeArm { arm, ring_option, sqpoll_core, told } = told;
    ensure!(*arm == Arm::Ring || ring_option.is_none(), "--ring-option is of the arm ring, not of {arm}");
    match arm {
        Arm::Ring => {
            let options = ring_option.map(|option| option.ring(*sqpoll_core)).unwrap_or_default();
            serve_floor_on(told, &options, ring_option.map_or(WRITES, RingOption::writes))
        }
        Arm::Threads => serve(told, threads::serve),
        Arm::Epoll => serve(told, epoll::serve),
        Arm::TokioUring => serve(told, runtime::serve),
    }
}

fn serve(told: &ServeFloor, serve: fn(Arc<Work>, TcpListener) -> Result<()>) -> Result<()> {
    let moved = Arc::new(AtomicU64::new(0));
    let told_moved = moved.clone();
    std::thread::spawn(move || obey(&told_moved));
    // Before any other thread is started: all of them inherit the core.
    pin_to(told.core)?;
    let work = Arc::new(Work::open(told, moved)?);
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("listening on the loopback")?;
    println!("{}{}", crate::target::LISTENING, listener.local_addr()?);
    std::io::stdout().flush()?;
    serve(work, listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_are_known_by_name_and_what_is_not_built_says_how_it_would_be() {
        for arm in Arm::ALL {
            match arm.name().parse::<Arm>() {
                Ok(parsed) => assert!(parsed == arm && arm.is_built()),
                Err(words) => assert!(!arm.is_built() && words.contains("--features tokio-uring"), "{words}"),
            }
        }
        let words = "fibres".parse::<Arm>().unwrap_err();
        assert!(words.contains("`fibres`") && words.contains("ring, threads, epoll"), "{words}");
    }
}
