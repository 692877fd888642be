//! How our ring can be set up otherwise, one thing at a time, and whether this host grants it.

use std::fmt;
use std::str::FromStr;

use ringlog::sys::{PageKind, Ring, SqPoll, UringOptions};

use crate::environment::allowed_cores;
use crate::floor::WRITES;

/// More writes under way than the file's threads of any server.
const DEPTH_MAX: usize = 128;
/// A longer poll is a spin.
const NAPI_MICROS_MAX: u32 = 10_000;
/// The submission thread sleeps after so long without any: a saturated server never lets it.
const SQPOLL_IDLE_MS: u32 = 10;
const PROBE_ARENA_BYTES: u64 = 8 << 20;

/// One thing that is otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingOption {
    /// A thread of the kernel's takes submissions.
    SqPoll,
    /// Neither memory nor files are registered.
    Unregistered,
    /// Memory is not.
    UnregisteredBuffers,
    /// Files and sockets are not.
    UnregisteredFiles,
    /// Memory of small pages only.
    SmallPages,
    /// Memory of huge pages that were reserved beforehand.
    HugePages,
    /// So many writes under way.
    Depth(usize),
    /// Waits poll the card's queues for so many microseconds.
    Napi(u32),
}

impl RingOption {
    /// The ring to ask for; a submission thread spins on `sqpoll_core`, or where the kernel likes.
    #[must_use]
    pub fn ring(self, sqpoll_core: Option<u32>) -> UringOptions {
        let plain = UringOptions::default();
        match self {
            RingOption::SqPoll => {
                let sqpoll = SqPoll { idle_ms: SQPOLL_IDLE_MS, core: sqpoll_core };
                UringOptions { sqpoll: Some(sqpoll), ..plain }
            }
            RingOption::Unregistered => {
                UringOptions { registered_buffers: false, registered_files: false, ..plain }
            }
            RingOption::UnregisteredBuffers => UringOptions { registered_buffers: false, ..plain },
            RingOption::UnregisteredFiles => UringOptions { registered_files: false, ..plain },
            RingOption::SmallPages => UringOptions { pages: PageKind::Small, ..plain },
            RingOption::HugePages => UringOptions { pages: PageKind::Reserved, ..plain },
            RingOption::Depth(_) => plain,
            RingOption::Napi(micros) => UringOptions { napi_busy_poll_micros: Some(micros), ..plain },
        }
    }

    /// Writes under way.
    #[must_use]
    pub fn writes(self) -> usize {
        match self {
            RingOption::Depth(writes) => writes,
            _ => WRITES,
        }
    }

    /// Asks the host for it, on a thread of its own; gives what a reader of the numbers should know.
    ///
    /// # Errors
    /// Why it is refused here.
    pub fn probe(self) -> Result<Option<String>, String> {
        let options = self.ring(None);
        std::thread::spawn(move || probe(&options)).join().map_err(|_| "the probe died".to_owned())??;
        let allowed = allowed_cores().len();
        Ok(match self {
            RingOption::SqPoll if allowed < 3 => Some(format!(
                "of {allowed} cores none is left for its thread, which takes its time from the server or the load"
            )),
            RingOption::Napi(_) => Some(
                "granted, but loopback sockets belong to no card's queue: there is nothing to poll".into(),
            ),
            _ => None,
        })
    }
}

/// A ring, and memory for it.
fn probe(options: &UringOptions) -> Result<(), String> {
    let ring = Ring::of_kernel(options, PROBE_ARENA_BYTES).map_err(|error| error.to_string())?;
    ring.clone().run(async move { ring.lease(1).await.map(drop).map_err(|error| error.to_string()) })
}

/// What the ring of the plain arm is granted here.
///
/// # Errors
/// Why there is none.
pub(super) fn describe_plain() -> Result<String, String> {
    let describe = || {
        let ring = Ring::of_kernel(&UringOptions::default(), PROBE_ARENA_BYTES)
            .map_err(|error| error.to_string())?;
        ring.clone().run(async move {
            ring.lease(1).await.map_err(|error| error.to_string())?;
            Ok(ring.capabilities().map(|found| found.to_string()).unwrap_or_default())
        })
    };
    std::thread::spawn(describe).join().map_err(|_| "the probe died".to_owned())?
}

impl fmt::Display for RingOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RingOption::SqPoll => f.write_str("sqpoll"),
            RingOption::Unregistered => f.write_str("unregistered"),
            RingOption::UnregisteredBuffers => f.write_str("unregistered-buffers"),
            RingOption::UnregisteredFiles => f.write_str("unregistered-files"),
            RingOption::SmallPages => f.write_str("small-pages"),
            RingOption::HugePages => f.write_str("huge-pages"),
            RingOption::Depth(writes) => write!(f, "depth={writes}"),
            RingOption::Napi(micros) => write!(f, "napi={micros}us"),
        }
    }
}

impl FromStr for RingOption {
    type Err = String;

    fn from_str(text: &str) -> Result<RingOption, String> {
        let plain = [
            RingOption::SqPoll,
            RingOption::Unregistered,
            RingOption::UnregisteredBuffers,
            RingOption::UnregisteredFiles,
            RingOption::SmallPages,
            RingOption::HugePages,
        ];
        if let Some(option) = plain.into_iter().find(|option| option.to_string() == text) {
            return Ok(option);
        }
        match text.split_once('=') {
            Some(("depth", number)) => match number.parse() {
                Ok(writes) if (1..=DEPTH_MAX).contains(&writes) => Ok(RingOption::Depth(writes)),
                _ => Err(format!("`{text}`: a depth is a number of writes under way from 1 to {DEPTH_MAX}")),
            },
            Some(("napi", time)) => match time.strip_suffix("us").unwrap_or_default().parse() {
                Ok(micros) if (1..=NAPI_MICROS_MAX).contains(&micros) => Ok(RingOption::Napi(micros)),
                _ => {
                    Err(format!("`{text}`: write a time from 1us to {NAPI_MICROS_MAX}us, such as napi=50us"))
                }
            },
            _ => {
                let names = plain.map(|option| option.to_string()).join(", ");
                Err(format!("there is no ring option `{text}`; there are: {names}, depth=N, napi=Nus"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_they_are_written_and_nonsense_is_named() {
        for text in [
            "sqpoll",
            "unregistered",
            "unregistered-buffers",
            "unregistered-files",
            "small-pages",
            "huge-pages",
        ] {
            assert_eq!(text.parse::<RingOption>().unwrap().to_string(), text);
        }
        assert_eq!("depth=8".parse(), Ok(RingOption::Depth(8)));
        assert_eq!("napi=50us".parse(), Ok(RingOption::Napi(50)));
        for (text, words) in [
            ("depth=0", "1 to 128"),
            ("depth=129", "1 to 128"),
            ("depth=x", "`depth=x`"),
            ("napi=50", "napi=50us"),
            ("napi=0us", "from 1us"),
            ("warp", "sqpoll, unregistered"),
            ("", "there is no ring option"),
        ] {
            let why = text.parse::<RingOption>().unwrap_err();
            assert!(why.contains(words), "`{words}` is missing in: {why}");
        }
    }

    #[test]
    fn what_the_host_refuses_is_named_with_the_reason_and_the_rest_is_granted() {
        assert_eq!(RingOption::Unregistered.probe(), Ok(None));
        assert_eq!(RingOption::Depth(8).probe(), Ok(None));
        assert_eq!(RingOption::SmallPages.probe(), Ok(None));
        for (option, cause) in [
            (RingOption::HugePages, "vm.nr_hugepages"),
            (RingOption::Napi(50), "NAPI"),
            (RingOption::SqPoll, "io_uring"),
        ] {
            match option.probe() {
                Ok(note) => eprintln!("{option} is granted: {note:?}"),
                Err(why) => assert!(why.contains(cause), "{option}: {why}"),
            }
        }
    }
}
