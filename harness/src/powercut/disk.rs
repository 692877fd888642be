//! The disk of a guest: a server of the NBD protocol whose power can be cut.
//!
//! It serves one client, QEMU. Requests that have arrived together are served in any order, as a disk may. A fuse counts
//! writes: when it has burnt down, at a write, the power is gone in that moment. Nothing is answered any more, and what
//! `Sectors` says survives is all there is; the connection stays open until the guest has gone as well.
//!
//! ```text
//! handshake (fixed newstyle): "NBDMAGIC" "IHAVEOPT" flags -> flags, options "IHAVEOPT" option length data -> replies
//! request:  0x25609513 u32  flags u16  type u16  handle u64  position u64  length u32  [data]     (big endian)
//! reply:    0x67446698 u32  error u32  handle u64  [data]
//! ```

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, ensure};

use super::sectors::{SECTOR_BYTES, Sectors, Survivors};

/// Requests that are taken together at most.
const TOGETHER_MAX: usize = 32;
const REQUEST_BYTES_MAX: u32 = 32 << 20;
const OPTION_BYTES_MAX: u32 = 64 << 10;
/// A fuse that is not lit.
const UNLIT: i64 = i64::MAX;

const GREETING: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
/// Fixed newstyle, no zeroes behind an export's flags.
const HANDSHAKE_FLAGS: u16 = 3;
/// There are flags, FLUSH, FUA.
const EXPORT_FLAGS: u16 = 1 | 4 | 8;
const OPTION_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;
const ACKNOWLEDGED: u32 = 1;
const INFORMATION: u32 = 3;
const NOT_SUPPORTED: u32 = 1 << 31 | 1;
const FLAG_FUA: u16 = 1;
const EINVAL: u32 = 22;

/// Whether a flush is worth something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Honesty {
    /// It makes durable what was written.
    Honest,
    /// It is answered and forgotten.
    Lies,
}

/// What a cut was.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Writes that the disk had taken since it started.
    pub writes: u64,
    /// Flushes that it had answered.
    pub flushes: u64,
    /// What survived.
    pub survivors: Survivors,
}

/// A disk that is served.
pub struct Disk {
    socket: PathBuf,
    fuse: Arc<AtomicI64>,
    ended: mpsc::Receiver<io::Result<Cut>>,
}

impl Disk {
    /// Serves an image at a socket; everything random comes from `seed`.
    ///
    /// # Errors
    /// When there is no image, or the socket cannot be made.
    pub fn serve(image: &Path, socket: &Path, honesty: Honesty, seed: u64) -> Result<Disk> {
        let file = File::options().read(true).write(true).open(image);
        let file = file.with_context(|| format!("opening {}", image.display()))?;
        let bytes = file.metadata()?.len();
        ensure!(
            bytes.is_multiple_of(SECTOR_BYTES as u64),
            "{}: {bytes} bytes are not whole sectors",
            image.display()
        );
        // Left by the disk before this one.
        let _ = fs::remove_file(socket);
        let listener =
            UnixListener::bind(socket).with_context(|| format!("listening at {}", socket.display()))?;
        let fuse = Arc::new(AtomicI64::new(UNLIT));
        let (tell, ended) = mpsc::channel();
        let burning = fuse.clone();
        thread::spawn(move || {
            let served = listener.accept().and_then(|(stream, _)| {
                let mut server = Server {
                    reader: BufReader::with_capacity(4 << 20, stream.try_clone()?),
                    stream,
                    bytes,
                    sectors: Sectors::new(file),
                    honesty,
                    fuse: burning,
                    random: fastrand::Rng::with_seed(seed),
                    writes: 0,
                    flushes: 0,
                };
                server.greet()?;
                server.run()?;
                server.cut()
            });
            let (cut, stream) = match served {
                Ok((cut, stream)) => (Ok(cut), Some(stream)),
                Err(error) => (Err(error), None),
            };
            // Who waits for it may have gone.
            let _ = tell.send(cut);
            // A guest whose disk has gone silent waits; one whose disk has gone fails its requests.
            if let Some(mut stream) = stream {
                let _ = io::copy(&mut stream, &mut io::sink());
            }
        });
        Ok(Disk { socket: socket.to_owned(), fuse, ended })
    }

    /// Cuts the power at the `writes`th write from now.
    pub fn light(&self, writes: u64) {
        self.fuse.store(writes.try_into().unwrap_or(UNLIT), Ordering::Relaxed);
    }

    /// Puts the fuse out, if it has not burnt down.
    pub fn put_out(&self) {
        self.fuse.store(UNLIT, Ordering::Relaxed);
    }

    /// The cut, once it has happened; it happens, too, when the guest goes.
    ///
    /// # Errors
    /// When the disk itself failed.
    pub fn cut(&self, patience: std::time::Duration) -> Result<Option<Cut>> {
        match self.ended.recv_timeout(patience) {
            Ok(cut) => Ok(Some(cut.context("the disk failed")?)),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
            Err(mpsc::RecvTimeoutError::Disconnected) => anyhow::bail!("the disk has ended before"),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A server that nobody came to still waits.
        let _ = UnixStream::connect(&self.socket);
        let _ = fs::remove_file(&self.socket);
    }
}

struct Server {
    reader: BufReader<UnixStream>,
    stream: UnixStream,
    bytes: u64,
    sectors: Sectors,
    honesty: Honesty,
    fuse: Arc<AtomicI64>,
    random: fastrand::Rng,
    writes: u64,
    flushes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Read,
    Write,
    Disconnect,
    Flush,
    Unknown,
}

struct Request {
    kind: Kind,
    fua: bool,
    handle: u64,
    position: u64,
    length: u32,
    data: Vec<u8>,
}

impl Server {
    fn greet(&mut self) -> io::Result<()> {
        let hello =
            [&GREETING.to_be_bytes()[..], &OPTION.to_be_bytes(), &HANDSHAKE_FLAGS.to_be_bytes()].concat();
        self.stream.write_all(&hello)?;
        let _client_flags = self.u32()?;
        let export = [&self.bytes.to_be_bytes()[..], &EXPORT_FLAGS.to_be_bytes()].concat();
        loop {
            let magic = self.u64()?;
            let (option, length) = (self.u32()?, self.u32()?);
            if magic != OPTION || length > OPTION_BYTES_MAX {
                return Err(io::Error::other(format!("no option of NBD: {magic:#x}, {length} bytes")));
            }
            self.reader.read_exact(&mut vec![0; length as usize])?;
            match option {
                OPTION_NAME => return self.stream.write_all(&export),
                OPTION_INFO | OPTION_GO => {
                    self.option_reply(option, INFORMATION, &[&[0, 0], &export[..]].concat())?;
                    self.option_reply(option, ACKNOWLEDGED, &[])?;
                    if option == OPTION_GO {
                        return Ok(());
                    }
                }
                OPTION_ABORT => return Err(io::Error::other("the client gave up")),
                _ => self.option_reply(option, NOT_SUPPORTED, &[])?,
            }
        }
    }

    fn option_reply(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let head = [option, kind, data.len() as u32].map(u32::to_be_bytes).concat();
        self.stream.write_all(&[&OPTION_REPLY.to_be_bytes()[..], &head, data].concat())
    }

    /// Serves until the fuse has burnt down or the client has gone.
    fn run(&mut self) -> io::Result<()> {
        loop {
            let mut together = match self.request() {
                Ok(request) => vec![request],
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error),
            };
            while !self.reader.buffer().is_empty() && together.len() < TOGETHER_MAX {
                together.push(self.request()?);
            }
            self.random.shuffle(&mut together);
            for request in together {
                if request.kind == Kind::Disconnect || self.answer(&request)? {
                    return Ok(());
                }
            }
        }
    }

    /// Serves one request; says whether the power went with it.
    fn answer(&mut self, request: &Request) -> io::Result<bool> {
        let end = request.position.checked_add(u64::from(request.length));
        let whole = (request.position | u64::from(request.length)).is_multiple_of(SECTOR_BYTES as u64);
        let fits = whole && end.is_some_and(|end| end <= self.bytes);
        let mut data = Vec::new();
        let mut error = 0;
        match request.kind {
            Kind::Flush => {
                self.flushes += 1;
                if self.honesty == Honesty::Honest {
                    self.sectors.flush()?;
                }
            }
            Kind::Read if fits => {
                data.resize(request.length as usize, 0);
                self.sectors.read(request.position, &mut data)?;
            }
            Kind::Write if fits => {
                self.writes += 1;
                let fua = request.fua && self.honesty == Honesty::Honest;
                self.sectors.write(request.position, &request.data, fua)?;
                let burn = |left| (left != UNLIT).then_some(left - 1);
                let burning = self.fuse.fetch_update(Ordering::Relaxed, Ordering::Relaxed, burn);
                if burning.is_ok_and(|left| left <= 1) {
                    return Ok(true);
                }
            }
            _ => error = EINVAL,
        }
        let head = [REPLY, error].map(u32::to_be_bytes).concat();
        let reply = [&head[..], &request.handle.to_be_bytes(), &data].concat();
        match self.stream.write_all(&reply) {
            // QEMU was stopped: the same as a cut.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(true),
            written => written.map(|()| false),
        }
    }

    fn cut(mut self) -> io::Result<(Cut, UnixStream)> {
        let survivors = self.sectors.cut(&mut self.random)?;
        Ok((Cut { writes: self.writes, flushes: self.flushes, survivors }, self.stream))
    }

    fn request(&mut self) -> io::Result<Request> {
        let magic = self.u32()?;
        if magic != REQUEST {
            return Err(io::Error::other(format!("no request of NBD: {magic:#x}")));
        }
        let (flags, kind) = (self.u16()?, self.u16()?);
        let (handle, position, length) = (self.u64()?, self.u64()?, self.u32()?);
        let kind = match kind {
            0 => Kind::Read,
            1 => Kind::Write,
            2 => Kind::Disconnect,
            3 => Kind::Flush,
            _ => Kind::Unknown,
        };
        if length > REQUEST_BYTES_MAX {
            return Err(io::Error::other(format!("a request of {length} bytes")));
        }
        let mut data = vec![0; if kind == Kind::Write { length as usize } else { 0 }];
        self.reader.read_exact(&mut data)?;
        Ok(Request { kind, fua: flags & FLAG_FUA != 0, handle, position, length, data })
    }

    fn u16(&mut self) -> io::Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    use super::*;

    const BYTES: u64 = 64 << 10;
    const READ: u16 = 0;
    const WRITE: u16 = 1;
    const FLUSH: u16 = 3;

    struct Client {
        stream: UnixStream,
        image: File,
        disk: Disk,
        _place: tempfile::TempDir,
    }

    impl Client {
        fn new(honesty: Honesty, seed: u64) -> Client {
            let place = tempfile::tempdir().unwrap();
            let (path, socket) = (place.path().join("image"), place.path().join("socket"));
            let image = File::create_new(&path).unwrap();
            image.set_len(BYTES).unwrap();
            let image = File::open(path).unwrap();
            let disk = Disk::serve(&place.path().join("image"), &socket, honesty, seed).unwrap();
            let mut stream = UnixStream::connect(&socket).unwrap();
            let mut hello = [0; 18];
            stream.read_exact(&mut hello).unwrap();
            assert_eq!(&hello, b"NBDMAGICIHAVEOPT\0\x03");
            stream.write_all(&3u32.to_be_bytes()).unwrap();
            // An option that there is not, then GO.
            for option in [8u32, OPTION_GO] {
                let words = [option, 4, 0].map(u32::to_be_bytes).concat();
                stream.write_all(&[&OPTION.to_be_bytes()[..], &words].concat()).unwrap();
            }
            let mut replies = [0; 20 + 20 + 12 + 20];
            stream.read_exact(&mut replies).unwrap();
            assert_eq!(replies[12..16], NOT_SUPPORTED.to_be_bytes());
            assert_eq!(replies[42..50], BYTES.to_be_bytes());
            assert_eq!(replies[64..68], ACKNOWLEDGED.to_be_bytes());
            Client { stream, image, disk, _place: place }
        }

        fn ask(&mut self, flags: u16, kind: u16, position: u64, length: u32, data: &[u8]) {
            let head = [&REQUEST.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
            let rest =
                [&7u64.to_be_bytes()[..], &position.to_be_bytes(), &length.to_be_bytes(), data].concat();
            self.stream.write_all(&[head, rest].concat()).unwrap();
        }

        /// The error of the answer.
        fn hear(&mut self, data: &mut [u8]) -> u32 {
            let mut head = [0; 16];
            self.stream.read_exact(&mut head).unwrap();
            assert_eq!(head[..4], REPLY.to_be_bytes());
            assert_eq!(head[8..], 7u64.to_be_bytes());
            let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
            if error == 0 {
                self.stream.read_exact(data).unwrap();
            }
            error
        }

        fn write(&mut self, flags: u16, sector: u64, value: u8) {
            self.ask(flags, WRITE, sector * 512, 512, &[value; 512]);
            assert_eq!(self.hear(&mut []), 0);
        }

        fn flush(&mut self) {
            self.ask(0, FLUSH, 0, 0, &[]);
            assert_eq!(self.hear(&mut []), 0);
        }

        fn cut(&mut self) -> Cut {
            self.disk.light(1);
            self.ask(0, WRITE, BYTES - 512, 512, &[0xee; 512]);
            self.disk.cut(Duration::from_secs(10)).unwrap().expect("a cut at the next write")
        }

        fn sector(&self, sector: u64) -> u8 {
            let mut bytes = [0; 512];
            self.image.read_exact_at(&mut bytes, sector * 512).unwrap();
            bytes[0]
        }
    }

    #[test]
    fn what_was_flushed_or_written_through_survives_every_cut() {
        let mut lost = 0;
        for seed in 0..40 {
            let mut client = Client::new(Honesty::Honest, seed);
            client.write(0, 1, 1);
            client.write(0, 3, 3);
            client.flush();
            client.write(0, 2, 9);
            client.write(FLAG_FUA, 2, 2);
            client.write(0, 3, 4);
            let mut read = [0; 1024];
            client.ask(0, READ, 1024, 1024, &[]);
            assert_eq!(client.hear(&mut read), 0);
            assert_eq!((read[0], read[512]), (2, 4));
            let cut = client.cut();
            assert_eq!((client.sector(1), client.sector(2)), (1, 2), "seed {seed}");
            assert!([3, 4].contains(&client.sector(3)), "seed {seed}");
            assert_eq!((cut.writes, cut.flushes, cut.survivors.unflushed), (6, 1, 2));
            lost += cut.survivors.lost;
        }
        assert!(lost > 10, "no cut lost anything");
    }

    #[test]
    fn a_disk_that_lies_loses_what_was_flushed() {
        let lost = (0..40).filter(|seed| {
            let mut client = Client::new(Honesty::Lies, *seed);
            client.write(FLAG_FUA, 1, 1);
            client.flush();
            client.cut();
            client.sector(1) == 0
        });
        assert!(lost.count() > 5);
    }

    #[test]
    fn requests_that_do_not_fit_are_refused_and_nothing_is_answered_after_a_cut() {
        let mut client = Client::new(Honesty::Honest, 1);
        for (kind, position, length) in
            [(READ, BYTES, 512), (READ, 1, 512), (READ, u64::MAX - 511, 512), (9, 0, 0)]
        {
            client.ask(0, kind, position, length, &[]);
            assert_eq!(client.hear(&mut []), EINVAL, "{kind} at {position}");
        }
        client.cut();
        client.ask(0, FLUSH, 0, 0, &[]);
        client.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(client.stream.read(&mut [0]).is_err(), "the connection is open and silent");
    }

    #[test]
    fn a_guest_that_goes_by_itself_is_a_cut_too() {
        let mut client = Client::new(Honesty::Honest, 1);
        client.write(0, 1, 1);
        client.stream.shutdown(std::net::Shutdown::Both).unwrap();
        let cut = client.disk.cut(Duration::from_secs(10)).unwrap().expect("a cut");
        assert_eq!(cut.survivors.unflushed, 1);
    }
}
