//! What the files of a directory offer: direct writes and their alignment, clones, flags of reads and writes, leases.
//!
//! Each answer is the kernel's own to the thing done once, on a file that never has a name.

use std::fs::{self, File};
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::sys::{BLOCK_BYTES, residency};

/// `FICLONE`, from linux/fs.h; the C library's crate does not have it on every target.
const FICLONE: libc::c_ulong = 0x4004_9409;
const F_SETLEASE: libc::c_int = 1024;

/// What files of one directory offer; where they do not, what the kernel said.
#[derive(Debug)]
pub struct FileOffer {
    /// What `statx` says of direct reads and writes (Linux 6.1); none where the file system does not say.
    pub alignment: Option<DirectAlignment>,
    /// A block written past the page cache and read back.
    pub direct: io::Result<()>,
    /// A file that shares the extents of another (`FICLONE`).
    pub reflink: io::Result<()>,
    /// A write that leaves the page cache again (`RWF_DONTCACHE`, Linux 6.14).
    pub dontcache: io::Result<()>,
    /// A read that would rather fail than wait (`RWF_NOWAIT`).
    pub nowait: io::Result<()>,
    /// The question what the page cache has of a file (`cachestat`, Linux 6.5).
    pub cachestat: io::Result<()>,
    /// A lease, which tells of others who open the file for writing (`F_SETLEASE`).
    pub lease: io::Result<()>,
}

/// What direct reads and writes must be aligned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectAlignment {
    /// Addresses in memory.
    pub memory_bytes: u32,
    /// Positions in the file, and lengths.
    pub file_bytes: u32,
}

#[repr(align(4096))]
struct Block([u8; BLOCK_BYTES]);

const _: () = assert!(align_of::<Block>() == BLOCK_BYTES);

/// Asks of files in `dir`, which exists and may be written to.
///
/// # Errors
/// When no file can be made there.
pub fn files(dir: &Path) -> io::Result<FileOffer> {
    let mut file = nameless(dir)?;
    let mut block = Box::new(Block([7; BLOCK_BYTES]));
    file.write_all(&block.0)?;
    let nowait = match read_flagged(&file, &mut block.0, libc::RWF_NOWAIT) {
        // The page went meanwhile, and the flag did what it is for.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        read => read,
    };
    let mut offer = FileOffer {
        alignment: alignment(&file),
        direct: direct(&file, &mut block),
        reflink: nameless(dir).and_then(|clone| reflink(&file, &clone)),
        dontcache: write_flagged(&file, &block.0, libc::RWF_DONTCACHE),
        nowait,
        cachestat: residency(&file, 0, BLOCK_BYTES as u64).map(drop),
        lease: Ok(()),
    };
    // The kernel gives no lease for reading while anybody may write.
    let read_only = reopen(&file, fs::OpenOptions::new().read(true));
    drop(file);
    offer.lease = read_only.and_then(|file| lease(&file));
    Ok(offer)
}

/// A file without a name; where the file system makes none such, one that loses its name at once.
fn nameless(dir: &Path) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE).open(dir) {
        Ok(file) => return Ok(file),
        Err(error) => match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL | libc::ENOENT) => {}
            _ => return Err(error),
        },
    }
    let path = dir.join(format!(".ringlog-probe-{}", std::process::id()));
    let file = options.create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// The same file, opened once more in another way.
fn reopen(file: &File, options: &fs::OpenOptions) -> io::Result<File> {
    options.open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn alignment(file: &File) -> Option<DirectAlignment> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty string with its zero, `answer` has room for a `struct statx`, and both outlive the call.
    let asked = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            answer.as_mut_ptr(),
        )
    };
    // SAFETY: a `struct statx` is numbers; all of them were zero before the kernel filled some in.
    let answer = unsafe { answer.assume_init() };
    let said = asked == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0 && answer.stx_dio_mem_align > 0;
    said.then_some(DirectAlignment {
        memory_bytes: answer.stx_dio_mem_align,
        file_bytes: answer.stx_dio_offset_align,
    })
}

fn direct(file: &File, block: &mut Block) -> io::Result<()> {
    let file = reopen(file, fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT))?;
    block.0.fill(9);
    file.write_all_at(&block.0, BLOCK_BYTES as u64)?;
    block.0.fill(0);
    file.read_exact_at(&mut block.0, BLOCK_BYTES as u64)?;
    match block.0.iter().all(|byte| *byte == 9) {
        true => Ok(()),
        false => Err(io::Error::other("what was written past the page cache was not read back")),
    }
}

fn reflink(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: both descriptors are open for the whole call, which takes the second one as a number.
    done(unsafe { libc::ioctl(to.as_raw_fd(), FICLONE as _, from.as_raw_fd()) } as isize)
}

fn lease(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open and the call touches no memory of ours. The lease goes with the descriptor, before
    // anybody could break it: the file has no name.
    done(unsafe { libc::fcntl(file.as_raw_fd(), F_SETLEASE, libc::F_RDLCK) } as isize)
}

fn read_flagged(file: &File, into: &mut [u8], flags: libc::c_int) -> io::Result<()> {
    let vector = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: `vector` describes `into`, which is borrowed for the whole call.
    done(unsafe { libc::preadv2(file.as_raw_fd(), &raw const vector, 1, 0, flags) })
}

fn write_flagged(file: &File, from: &[u8], flags: libc::c_int) -> io::Result<()> {
    let vector = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
    // SAFETY: `vector` describes `from`, which is borrowed for the whole call and only read.
    done(unsafe { libc::pwritev2(file.as_raw_fd(), &raw const vector, 1, 0, flags) })
}

fn done(result: isize) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_asked_and_leave_no_trace() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let offer = files(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        if let Some(alignment) = offer.alignment {
            assert!(alignment.memory_bytes.is_power_of_two() && alignment.file_bytes.is_power_of_two());
            assert!(offer.direct.is_ok(), "statx and the write itself agree: {offer:?}");
        }
        assert!(files(&dir.path().join("nothing")).is_err());
    }

    #[test]
    fn memory_shares_no_extents() {
        let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return println!("skipped: no /dev/shm") };
        let offer = files(dir.path()).unwrap();
        assert!(offer.reflink.is_err(), "{offer:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
