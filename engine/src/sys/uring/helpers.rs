//! The helper pool: a few threads for everything about files that can block.
//!
//! A shard hands over a [`Job`] and goes on; the reply comes back through a queue and rings the shard's bell. The
//! pool is bounded: beyond [`JOBS_QUEUED_MAX`] a job is refused with `WouldBlock`, which reaches its caller as the
//! job's error.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel;
use crossbeam::queue::SegQueue;

use super::ring_bell;
use crate::sys::arena::Chunk;
use crate::sys::flushes::{Flushes, flushes_of};
use crate::sys::map::Mapping;
use crate::sys::op::{DirEntry, DirLock, Job, LockKind, OpenOptions, Reply, Token};
use crate::sys::pages::FreshPages;
use crate::sys::refusal::{about, failed_flush};
use crate::sys::write_map::WriteMap;

/// Jobs that may wait for a helper.
pub(crate) const JOBS_QUEUED_MAX: usize = 8192;

/// A job with its return address. The file it is about stays open: the operation's slot holds it.
pub(super) struct Help {
    pub token: Token,
    pub job: Job,
    pub fd: Option<RawFd>,
}

type Answer = (Token, io::Result<u32>, SendReply);

/// The replies that cross threads.
enum SendReply {
    None,
    Opened(OwnedFd, bool),
    Entries(Vec<DirEntry>),
    Bytes(Vec<u8>),
    Size(u64),
    Flushes(Flushes),
    Lock(OwnedFd),
    Chunk(Chunk),
    Mapped(Arc<Mapping>),
    Pages(FreshPages),
    Window(WriteMap),
}

pub(super) struct HelperPool {
    jobs: Option<channel::Sender<Help>>,
    answers: Arc<SegQueue<Answer>>,
    refused: Vec<Token>,
    threads: Vec<JoinHandle<()>>,
}

/// A way to hand over jobs that nobody waits for.
#[derive(Clone)]
pub(crate) struct Sender(channel::Sender<Help>);

/// The return address of jobs without one.
const NOBODY: Token = Token { slot: u32::MAX, generation: u32::MAX };

impl Sender {
    /// Hands over a job that needs no answer; when the pool is full or gone, does it here and now.
    pub(crate) fn send_unanswered(&self, job: Job) {
        if let Err(refused) = self.0.try_send(Help { token: NOBODY, job, fd: None }) {
            let _ = perform(refused.into_inner().job, None);
        }
    }
}

impl HelperPool {
    pub(super) fn start(threads: usize, bell: OwnedFd) -> io::Result<HelperPool> {
        let (sender, receiver) = channel::bounded::<Help>(JOBS_QUEUED_MAX);
        let answers = Arc::new(SegQueue::new());
        let bell = Arc::new(bell);
        let start = |number: usize| {
            let (receiver, answers, bell) = (receiver.clone(), answers.clone(), bell.clone());
            std::thread::Builder::new()
                .name(format!("rl-helper-{number}"))
                .spawn(move || work(&receiver, &answers, &bell))
        };
        let threads = (0..threads.max(1)).map(start).collect::<io::Result<Vec<_>>>()?;
        Ok(HelperPool { jobs: Some(sender), answers, refused: Vec::new(), threads })
    }

    pub(super) fn sender(&self) -> Sender {
        Sender(self.jobs.clone().expect("the pool takes jobs until it is dropped"))
    }

    pub(super) fn submit(&mut self, help: Help) {
        let jobs = self.jobs.as_ref().expect("the pool takes jobs until it is dropped");
        if let Err(refused) = jobs.try_send(help) {
            self.refused.push(refused.into_inner().token);
        }
    }

    /// Whether there is no reply to collect.
    pub(super) fn idle_or_waiting(&self) -> bool {
        self.answers.is_empty() && self.refused.is_empty()
    }

    pub(super) fn next_reply(&mut self) -> Option<(Token, io::Result<u32>, Reply)> {
        if let Some(token) = self.refused.pop() {
            let message = format!("{JOBS_QUEUED_MAX} jobs wait for the helpers already");
            return Some((token, Err(io::Error::new(io::ErrorKind::WouldBlock, message)), Reply::None));
        }
        let (token, result, reply) = self.answers.pop()?;
        let reply = match reply {
            SendReply::None => Reply::None,
            SendReply::Opened(fd, direct) => Reply::Opened { fd, direct },
            SendReply::Entries(entries) => Reply::Entries(entries),
            SendReply::Bytes(bytes) => Reply::Bytes(bytes),
            SendReply::Size(bytes) => Reply::Size(bytes),
            SendReply::Flushes(flushes) => Reply::Flushes(flushes),
            SendReply::Lock(fd) => Reply::Lock(DirLock(LockKind::Os { _fd: fd })),
            SendReply::Chunk(chunk) => Reply::Chunk(chunk),
            SendReply::Mapped(mapping) => Reply::Mapped(mapping),
            SendReply::Pages(pages) => Reply::Pages(pages),
            SendReply::Window(mapping) => Reply::Window(mapping),
        };
        Some((token, result, reply))
    }
}

impl Drop for HelperPool {
    fn drop(&mut self) {
        // Handles that are dropped later still hold senders, so the threads are not joined: they end with the last.
        self.jobs = None;
        self.threads.clear();
    }
}

fn work(jobs: &channel::Receiver<Help>, answers: &SegQueue<Answer>, bell: &OwnedFd) {
    while let Ok(Help { token, job, fd }) = jobs.recv() {
        // SAFETY: the operation's slot keeps the file open until the answer has been collected.
        let file = fd.map(|fd| unsafe { BorrowedFd::borrow_raw(fd) });
        let result = perform(job, file);
        if token == NOBODY {
            continue;
        }
        answers.push(match result {
            Ok(reply) => (token, Ok(0), reply),
            Err(error) => (token, Err(error), SendReply::None),
        });
        ring_bell(bell.as_raw_fd());
    }
}

fn perform(job: Job, file: Option<BorrowedFd<'_>>) -> io::Result<SendReply> {
    let file = || file.ok_or_else(|| io::Error::other("this job is about a file"));
    match job {
        Job::Open { path, options } => open(&path, options).map_err(about("open", &path)),
        Job::List { path } => list(&path).map(SendReply::Entries).map_err(about("list", &path)),
        Job::MakeDir { path, synced } => fs::create_dir_all(&path)
            .and_then(|()| if synced { sync_parent(&path) } else { Ok(()) })
            .map_err(about("make", &path))
            .map(done),
        Job::SyncDir { path } => sync_dir(&path).map_err(about("sync", &path)).map(done),
        Job::SyncAll => nix::unistd::syncfs(file()?).map_err(io::Error::from).map(done),
        Job::Rename { from, to } => rename(&from, &to).map_err(about("rename", &from)).map(done),
        Job::Remove { path } => {
            let removed = absent_is_fine(fs::remove_file(&path)).and_then(|()| sync_parent(&path));
            removed.map_err(about("remove", &path)).map(done)
        }
        Job::RemoveDir { path } => {
            let removed = absent_is_fine(fs::remove_dir_all(&path)).and_then(|()| sync_parent(&path));
            removed.map_err(about("remove", &path)).map(done)
        }
        Job::ReadFile { path, bytes_max } => {
            read_file(&path, bytes_max).map(SendReply::Bytes).map_err(about("read", &path))
        }
        Job::Replace { path, bytes, synced } => {
            replace(&path, &bytes, synced).map_err(about("replace", &path)).map(done)
        }
        Job::Prepare { from, to } => prepare(file()?, from, to).map(done),
        Job::Trim { to } => {
            nix::unistd::ftruncate(file()?, to as i64)?;
            nix::unistd::fsync(file()?).map_err(failed_flush)?;
            Ok(SendReply::None)
        }
        Job::NextData { at } => {
            let file = file()?;
            match nix::unistd::lseek(file, at as i64, nix::unistd::Whence::SeekData) {
                Ok(data) => Ok(SendReply::Size(data as u64)),
                Err(nix::errno::Errno::ENXIO) => {
                    Ok(SendReply::Size(nix::sys::stat::fstat(file)?.st_size as u64))
                }
                // One that knows nothing of holes has data everywhere.
                Err(nix::errno::Errno::EINVAL) => Ok(SendReply::Size(at)),
                Err(error) => Err(error.into()),
            }
        }
        Job::Size => Ok(SendReply::Size(nix::sys::stat::fstat(file()?)?.st_size as u64)),
        Job::WarmCache { from, to } => warm_cache(file()?, from, to).map(done),
        Job::Flushes { path } => flushes_of(&path).map(SendReply::Flushes),
        Job::Map { bytes } => Mapping::of(file()?, bytes).map(SendReply::Mapped),
        Job::Populate { map, from, to } => {
            // At the device's pace first, then page by page.
            warm_cache(file()?, from, to).and_then(|()| map.os().populate(from, to)).map(done)
        }
        Job::Unmap(mapping) => {
            drop(mapping);
            Ok(SendReply::None)
        }
        Job::CutAnew { path, to } => cut_anew(&path, to).map_err(about("cut", &path)).map(done),
        Job::Lock { path } => lock(&path).map(SendReply::Lock),
        Job::MapChunk { bytes, pages } => Chunk::map(bytes, pages).map(SendReply::Chunk),
        Job::MapPages { bytes } => FreshPages::map(bytes).map(SendReply::Pages),
        Job::UnmapPages(pages) => {
            drop(pages);
            Ok(SendReply::None)
        }
        Job::MapWindow { at, bytes } => WriteMap::of_file(file()?, at, bytes).map(SendReply::Window),
        Job::UnmapWindow(mapping) => {
            drop(mapping);
            Ok(SendReply::None)
        }
        Job::Close(fd) => {
            drop(fd);
            Ok(SendReply::None)
        }
    }
}

fn done(_: ()) -> SendReply {
    SendReply::None
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn open(path: &Path, options: OpenOptions) -> io::Result<SendReply> {
    let mut open = fs::OpenOptions::new();
    open.read(true).write(options.write).create(options.create);
    if options.direct {
        open.custom_flags(libc::O_DIRECT);
    }
    let file = open.open(path)?;
    Ok(SendReply::Opened(file.into(), options.direct))
}

fn list(path: &Path) -> io::Result<Vec<DirEntry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        // An entry may be gone by now: then it is not listed.
        let Ok(metadata) = entry.metadata() else { continue };
        let is_dir = metadata.is_dir();
        entries.push(DirEntry {
            name: entry.file_name(),
            is_dir,
            bytes: if is_dir { 0 } else { metadata.len() },
        });
    }
    Ok(entries)
}

fn sync_dir(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent != Path::new("") => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_parent(to)?;
    if from.parent() != to.parent() {
        sync_parent(from)?;
    }
    Ok(())
}

fn read_file(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let bytes = fs::metadata(path)?.len();
    if bytes > bytes_max {
        let message = format!("it holds {bytes} bytes where at most {bytes_max} make sense");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    fs::read(path)
}

fn replace(path: &Path, bytes: &[u8], synced: bool) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or(OsStr::new("")).to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let written = write_anew(&temporary, bytes, synced).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // On a full disk what there is of it is room that others need.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    if synced { sync_parent(path) } else { Ok(()) }
}

fn write_anew(path: &Path, bytes: &[u8], synced: bool) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(bytes)?;
    if synced { file.sync_all() } else { Ok(()) }
}

/// As [`replace`], with the first bytes of the old file. They are shared where the file system can, copied where not.
fn cut_anew(path: &Path, to: u64) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or(OsStr::new("")).to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let copied = copy_head(path, &temporary, to).and_then(|()| fs::rename(&temporary, path));
    if copied.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    copied?;
    sync_parent(path)
}

fn copy_head(from: &Path, to: &Path, bytes: u64) -> io::Result<()> {
    let (source, mut target) = (fs::File::open(from)?, fs::File::create(to)?);
    let copied = io::copy(&mut source.take(bytes), &mut target)?;
    if copied < bytes {
        let message = format!("it ends at position {copied}, expected {bytes}");
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
    }
    target.sync_all().map_err(failed_flush)
}

fn prepare(file: BorrowedFd<'_>, from: u64, to: u64) -> io::Result<()> {
    let (from_signed, bytes) = (from as i64, (to - from) as i64);
    match nix::fcntl::fallocate(file, nix::fcntl::FallocateFlags::empty(), from_signed, bytes) {
        // File systems without extents to reserve: the size alone lets appends find zeros.
        Err(nix::Error::EOPNOTSUPP) => {
            if (nix::sys::stat::fstat(file)?.st_size as u64) < to {
                nix::unistd::ftruncate(file, to as i64)?;
            }
        }
        other => other?,
    }
    nix::unistd::fsync(file).map_err(failed_flush)
}

/// `sendfile` to /dev/null: the pages come into the cache and nothing is copied.
fn warm_cache(file: BorrowedFd<'_>, from: u64, to: u64) -> io::Result<()> {
    let sink = fs::OpenOptions::new().write(true).open("/dev/null")?;
    let mut at = from as i64;
    while (at as u64) < to {
        let left = (to - at as u64) as usize;
        if nix::sys::sendfile::sendfile(&sink, file, Some(&mut at), left)? == 0 {
            break; // The end of the file.
        }
    }
    Ok(())
}

fn lock(path: &PathBuf) -> io::Result<OwnedFd> {
    let mut file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    // SAFETY: the descriptor is open; the call touches no memory of ours.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(about("lock", path)(error));
        }
        let holder = fs::read_to_string(path).unwrap_or_default();
        let holder = if holder.trim().is_empty() { "another process" } else { holder.trim() };
        let message =
            format!("{} is locked by {holder}; one process at a time may use this directory", path.display());
        return Err(io::Error::new(io::ErrorKind::WouldBlock, message));
    }
    // The name of its holder is for whoever finds it locked; on a full disk there may be no room for it.
    let holder = format!("process {}\n", std::process::id());
    let named = file.write_all(holder.as_bytes()).and_then(|()| file.set_len(holder.len() as u64));
    match named {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
        named => named?,
    }
    Ok(file.into())
}
