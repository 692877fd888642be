//! Whether the floor is one: its parts held against tools that have nothing to do with it.
//!
//! Its writes are held against `fio` with the same geometry on the same file system, its receiving against a bare
//! blocking send/recv pair of sockets, on the same cores, in turns. A floor that does not reach 0.9 of them is void: what
//! is held against it looks better than it is.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringlog::sys::topology::pin_to;
use ringlog::sys::{Ring, UringOptions};
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::{ARENA_BYTES_MAX, PREPARED_BYTES, UNIT_BYTES, WRITES};
use crate::comparison::median;
use crate::units::three_digits;

/// What a floor must reach of its measure.
pub const SHARE_MIN: f64 = 0.9;
const TURNS: usize = 4;
const SOCKET_TIME: Duration = Duration::from_millis(100);
/// Written in each turn: four times what is prepared beforehand.
const DISK_BYTES: u64 = 4 * PREPARED_BYTES;
/// What the sender of a socket check gives to the kernel at once.
const SEND_BYTES: usize = 256 << 10;

/// Both parts of the floor, each with its measure. MB (10^6) a second, medians.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Validity {
    /// Receiving, against a bare pair.
    pub socket: Held,
    /// Writing, against fio; absent where fio is not installed.
    pub disk: Option<Held>,
}

/// A part of the floor and what it is held against.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// MB/s of the floor.
    pub floor: f64,
    /// MB/s of the other.
    pub other: f64,
}

impl Held {
    /// The floor's part of the other.
    #[must_use]
    pub fn share(self) -> f64 {
        self.floor / self.other
    }

    fn of(turns: &[(f64, f64)]) -> Held {
        let middle = |value: fn(&(f64, f64)) -> f64| median(turns.iter().map(value).collect());
        let (floor, other) = (middle(|turn| turn.0), middle(|turn| turn.1));
        Held { floor: floor.unwrap_or(0.0), other: other.unwrap_or(f64::NAN) }
    }
}

impl Validity {
    /// Measures both; `directory` is where the floor's file would lie, the cores are the server's and the load's.
    ///
    /// # Errors
    /// When there is no ring, file or socket to be had, or fio fails.
    pub fn measure(directory: &Path, cores: (usize, usize)) -> Result<Validity> {
        std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        let with_fio = Command::new("fio").arg("--version").output().is_ok_and(|fio| fio.status.success());
        let (mut socket, mut disk) = (Vec::new(), Vec::new());
        for turn in 0..TURNS {
            // Who begins has the quieter half of a turn, or the noisier: so they take turns in that as well.
            let floor_first = turn % 2 == 0;
            socket.push(in_turn(
                floor_first,
                || received(cores, ring_receiver),
                || received(cores, bare_receiver),
            )?);
            if with_fio {
                let (ours, theirs) = (|| written(directory, cores.0), || fio(directory, cores.0));
                disk.push(in_turn(floor_first, ours, theirs)?);
            }
        }
        Ok(Validity { socket: Held::of(&socket), disk: with_fio.then(|| Held::of(&disk)) })
    }

    /// What is wrong with the floor, or not known of it; nothing when all of it holds.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        let parts =
            [("receiving", "a bare send/recv pair", Some(self.socket)), ("writing", "fio", self.disk)];
        for (part, other, held) in parts {
            match held {
                None => complaints
                    .push(format!("The floor's {part} was not held against {other}: it is not installed.")),
                Some(held) if held.share() < SHARE_MIN => complaints.push(format!(
                    "The floor is void in {part}: {} MB/s, {other} does {}.",
                    three_digits(held.floor),
                    three_digits(held.other)
                )),
                Some(_) => {}
            }
        }
        complaints
    }
}

impl std::fmt::Display for Validity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "receiving {:.2} of a bare send/recv pair", self.socket.share())?;
        match self.disk {
            Some(disk) => write!(f, ", writing {:.2} of fio", disk.share()),
            None => write!(f, ", writing not checked (no fio)"),
        }
    }
}

/// Both results, in the order of their names; which one is measured first is said.
fn in_turn(
    first_first: bool,
    first: impl Fn() -> Result<f64>,
    second: impl Fn() -> Result<f64>,
) -> Result<(f64, f64)> {
    if first_first {
        return Ok((first()?, second()?));
    }
    let second = second()?;
    Ok((first()?, second))
}

/// MB/s that a receiver on the first core takes from a sender on the second.
fn received(
    (server, client): (usize, usize),
    receiver: fn(TcpStream) -> Result<(u64, Duration)>,
) -> Result<f64> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listener.local_addr()?;
    let sending = thread::spawn(move || -> Result<()> {
        pin_to(client)?;
        let mut stream = TcpStream::connect(address)?;
        let bytes = vec![7; SEND_BYTES];
        // Until the receiver has had enough and closes.
        while stream.write_all(&bytes).is_ok() {}
        Ok(())
    });
    let receiving = thread::spawn(move || -> Result<f64> {
        pin_to(server)?;
        let (stream, _) = listener.accept()?;
        let (bytes, time) = receiver(stream)?;
        Ok(bytes as f64 / 1e6 / time.as_secs_f64())
    });
    let rate = receiving.join().expect("a receiver that does not panic");
    sending.join().expect("a sender that does not panic")?;
    rate
}

fn bare_receiver(mut stream: TcpStream) -> Result<(u64, Duration)> {
    // Not zeros: the kernel would bring its pages only when they are written to.
    let mut buffer = vec![7; UNIT_BYTES];
    let (begun, mut bytes) = (Instant::now(), 0);
    while begun.elapsed() < SOCKET_TIME {
        match stream.read(&mut buffer)? {
            0 => break,
            read => bytes += read as u64,
        }
    }
    Ok((bytes, begun.elapsed()))
}

fn ring_receiver(stream: TcpStream) -> Result<(u64, Duration)> {
    let ring = Ring::of_kernel(&UringOptions::default(), ARENA_BYTES_MAX)?;
    ring.clone().run(async move {
        let socket = ring.adopt_stream(stream)?;
        let mut memory = ring.lease(UNIT_BYTES).await?;
        let (begun, mut bytes) = (Instant::now(), 0);
        while begun.elapsed() < SOCKET_TIME {
            let (received, whole) = ring.recv(&socket, memory).await;
            memory = whole;
            match received? {
                0 => break,
                received => bytes += received as u64,
            }
        }
        Ok((bytes, begun.elapsed()))
    })
}

/// MB/s of the floor's own writing.
fn written(directory: &Path, core: usize) -> Result<f64> {
    let path = directory.join("check-floor");
    let file = path.clone();
    let writing = thread::spawn(move || -> Result<f64> {
        pin_to(core)?;
        let ring = Ring::of_kernel(&UringOptions::default(), ARENA_BYTES_MAX)?;
        ring.clone().run(async move {
            let disk = Rc::new(Disk::open(&ring, &file, WRITES).await?);
            let unit = ring.lease(UNIT_BYTES).await?.freeze();
            let begun = Instant::now();
            for _ in 0..DISK_BYTES / UNIT_BYTES as u64 {
                disk.write(unit.clone()).await?;
            }
            disk.settled().await?;
            Ok(DISK_BYTES as f64 / 1e6 / begun.elapsed().as_secs_f64())
        })
    });
    let rate = writing.join().expect("a writer that does not panic");
    let _ = std::fs::remove_file(path);
    rate
}

/// MB/s of fio in the same geometry.
fn fio(directory: &Path, core: usize) -> Result<f64> {
    let path = directory.join("check-fio");
    let words = [
        "--name=floor".to_owned(),
        format!("--filename={}", path.display()),
        "--rw=write".into(),
        format!("--bs={UNIT_BYTES}"),
        format!("--iodepth={WRITES}"),
        "--ioengine=io_uring".into(),
        "--direct=1".into(),
        "--fallocate=native".into(),
        format!("--size={DISK_BYTES}"),
        format!("--cpus_allowed={core}"),
        "--output-format=json".into(),
    ];
    let ran = Command::new("fio").args(&words).output().context("running fio")?;
    let _ = std::fs::remove_file(path);
    ensure!(ran.status.success(), "fio {}: {}", words.join(" "), String::from_utf8_lossy(&ran.stderr).trim());
    let text = String::from_utf8_lossy(&ran.stdout);
    // It may say something in front of what was asked for.
    let json = text.find('{').map_or("", |at| &text[at..]);
    let told: serde_json::Value = serde_json::from_str(json).context("what fio says")?;
    let rate = told["jobs"][0]["write"]["bw_bytes"].as_f64().context("fio says no write.bw_bytes")?;
    Ok(rate / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_below_nine_tenths_is_void_and_one_that_was_not_checked_is_said() {
        let held = |floor| Held { floor, other: 1000.0 };
        let valid = Validity { socket: held(950.0), disk: Some(held(900.0)) };
        assert_eq!(valid.complaints(), Vec::<String>::new());
        assert_eq!(valid.to_string(), "receiving 0.95 of a bare send/recv pair, writing 0.90 of fio");
        let void = Validity { socket: held(800.0), disk: None };
        let complaints = void.complaints().join("\n");
        assert!(
            complaints.contains("void in receiving: 800 MB/s") && complaints.contains("not held against fio")
        );
    }

    #[test]
    fn both_parts_can_be_measured() {
        // Not in the system's own place for it: that may be a tmpfs.
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let cores = crate::environment::allowed_cores();
        let cores = (cores[0], cores[cores.len() - 1]);
        let validity = Validity::measure(directory.path(), cores).unwrap();
        let required = std::env::var_os("RINGLOG_REQUIRE_ALL").is_some();
        assert!(validity.disk.is_some() || !required, "fio is not installed");
        assert!(validity.socket.floor > 0.0 && validity.socket.other > 0.0, "{validity:?}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left");
    }
}
