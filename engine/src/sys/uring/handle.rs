//! Descriptors on the kernel's ring: registered in its file table where there is room, closed when nobody uses them.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use io_uring::IoUring;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, sockopt};

use super::helpers;
use crate::sys::op::Job;

/// Files and sockets that one ring registers at most; more are used by descriptor.
const FIXED_FILES_MAX: u32 = 8192;
const LISTEN_BACKLOG: i32 = 1024;
/// How long an address that is in use is asked for again.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(2);
const ADDRESS_RETRY: Duration = Duration::from_millis(50);

/// A descriptor, with its place in the ring's table of registered files if it has one.
pub struct OsHandle {
    /// Shared with the handles of other rings on the same file.
    fd: Option<Arc<OwnedFd>>,
    fixed: Option<u32>,
    pub(crate) direct: bool,
    table: Rc<FixedTable>,
    /// Files are closed by a helper: the last close of an unlinked segment frees its blocks, which takes long.
    closer: Option<helpers::Sender>,
}

/// Which places of the ring's file table are free, and which are to be emptied before the next visit. The default has none.
#[derive(Default)]
pub(crate) struct FixedTable {
    vacant: RefCell<Vec<u32>>,
    retired: RefCell<Vec<Retired>>,
}

/// A place that is to be emptied, and what is to be closed once it is: the table holds the file open as well, and the last
/// one to let go of an unlinked segment frees its blocks, which may take the device's time.
struct Retired {
    index: u32,
    then_close: Option<(OwnedFd, helpers::Sender)>,
}

impl FixedTable {
    /// Registers an empty table with the ring; an empty one of no places when the kernel refuses.
    pub(crate) fn register(ring: &IoUring) -> FixedTable {
        let (limit, _) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap_or((0, 0));
        let places = FIXED_FILES_MAX.min(u32::try_from(limit).unwrap_or(u32::MAX));
        let registered = places > 0 && ring.submitter().register_files_sparse(places).is_ok();
        let vacant = if registered { (0..places).rev().collect() } else { Vec::new() };
        FixedTable { vacant: RefCell::new(vacant), retired: RefCell::new(Vec::new()) }
    }

    fn place(&self, ring: &IoUring, fd: RawFd) -> Option<u32> {
        let index = self.vacant.borrow_mut().pop()?;
        match ring.submitter().register_files_update(index, &[fd]) {
            Ok(_) => Some(index),
            Err(_) => {
                self.vacant.borrow_mut().push(index);
                None
            }
        }
    }

    /// Takes the files of dropped handles out of the ring, then has them closed.
    pub(crate) fn retire(&self, ring: &IoUring, system_calls: &mut u64) {
        if self.retired.borrow().is_empty() {
            return;
        }
        for Retired { index, then_close } in self.retired.borrow_mut().drain(..) {
            *system_calls += 1;
            let emptied = ring.submitter().register_files_update(index, &[-1]);
            assert!(emptied.is_ok(), "place {index} of the file table could not be emptied: {emptied:?}");
            self.vacant.borrow_mut().push(index);
            if let Some((fd, closer)) = then_close {
                closer.send_unanswered(Job::Close(fd));
            }
        }
    }
}

impl OsHandle {
    pub(super) fn new(
        fd: OwnedFd,
        direct: bool,
        table: &Rc<FixedTable>,
        ring: &IoUring,
        closer: Option<helpers::Sender>,
    ) -> OsHandle {
        let fixed = table.place(ring, fd.as_raw_fd());
        OsHandle { fd: Some(Arc::new(fd)), fixed, direct, table: table.clone(), closer }
    }

    /// A handle on a file that another ring opened: used by its descriptor, not registered here.
    pub(super) fn of_another_ring(
        fd: Arc<OwnedFd>,
        direct: bool,
        table: &Rc<FixedTable>,
        closer: helpers::Sender,
    ) -> OsHandle {
        OsHandle { fd: Some(fd), fixed: None, direct, table: table.clone(), closer: Some(closer) }
    }

    pub(crate) fn share(&self) -> Arc<OwnedFd> {
        self.fd.clone().expect("a handle has its descriptor until it is dropped")
    }

    /// Names the descriptor without keeping it open.
    pub(crate) fn identity(&self) -> Weak<OwnedFd> {
        Arc::downgrade(self.fd.as_ref().expect("a handle has its descriptor until it is dropped"))
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.fd.as_ref().expect("a handle has its descriptor until it is dropped").as_raw_fd()
    }

    pub(super) fn fixed(&self) -> Option<u32> {
        self.fixed
    }

    pub(crate) fn shutdown(&self) {
        // A peer that is gone already is what was wanted.
        let _ = socket::shutdown(self.fd(), socket::Shutdown::Both);
    }

    pub(crate) fn abort(&self) {
        // A socket without this switch has nothing to throw away.
        let now = libc::linger { l_onoff: 1, l_linger: 0 };
        let _ = socket::setsockopt(
            self.fd.as_ref().expect("a handle has its descriptor until it is dropped"),
            sockopt::Linger,
            &now,
        );
        self.shutdown();
    }

    /// From `struct tcp_info`, whose end the C library's own does not have: `tcpi_bytes_acked` and
    /// `tcpi_bytes_received` lie at 120 and 128 since Linux 4.1.
    pub(crate) fn moved_bytes(&self) -> Option<u64> {
        let mut info = [0u64; 17];
        let mut bytes = size_of_val(&info) as libc::socklen_t;
        // SAFETY: the descriptor is open for the whole call; `info` and `bytes` outlive it, and the kernel writes at most
        // `bytes` bytes, of which any are a valid array of numbers.
        let answered = unsafe {
            let into = info.as_mut_ptr().cast();
            libc::getsockopt(self.fd(), libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut bytes)
        };
        let complete = answered == 0 && bytes as usize >= size_of_val(&info);
        complete.then(|| info[15] + info[16])
    }

    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        let storage = socket::getpeername::<SockaddrStorage>(self.fd()).ok()?;
        to_std(&storage)
    }
}

impl Drop for OsHandle {
    fn drop(&mut self) {
        let fd = Arc::into_inner(self.fd.take().expect("a handle is dropped once"));
        // A socket has no closer: it is closed here, or when its place is emptied.
        let then_close = match (fd, self.closer.take()) {
            (Some(fd), Some(closer)) => Some((fd, closer)),
            _ => None,
        };
        match (self.fixed, then_close) {
            (Some(index), then_close) => {
                self.table.retired.borrow_mut().push(Retired { index, then_close });
            }
            (None, Some((fd, closer))) => closer.send_unanswered(Job::Close(fd)),
            (None, None) => {}
        }
    }
}

/// A socket address in the kernel's shape.
pub struct SockAddr(SockaddrStorage);

impl From<SocketAddr> for SockAddr {
    fn from(address: SocketAddr) -> SockAddr {
        SockAddr(SockaddrStorage::from(address))
    }
}

impl SockAddr {
    pub(super) fn as_parts(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        (self.0.as_ptr(), self.0.len())
    }
}

fn to_std(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}

fn stream(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    // Non-blocking for the inline calls (sendfile); operations on the ring wait all the same.
    Ok(socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?)
}

pub(super) fn stream_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let fd = stream(address)?;
    set_no_delay(fd.as_raw_fd());
    Ok(fd)
}

pub(super) fn listening_socket(address: SocketAddr, shared: bool) -> io::Result<(OwnedFd, SocketAddr)> {
    let explain = |errno| cannot_listen(address, errno);
    let (fd, bound) = bound_socket(address, shared)?;
    socket::listen(&fd, socket::Backlog::new(LISTEN_BACKLOG).map_err(explain)?).map_err(explain)?;
    Ok((fd, bound))
}

fn bound_socket(address: SocketAddr, shared: bool) -> io::Result<(OwnedFd, SocketAddr)> {
    let explain = |errno| cannot_listen(address, errno);
    let fd = stream(address)?;
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true).map_err(explain)?;
    if shared {
        socket::setsockopt(&fd, sockopt::ReusePort, &true).map_err(explain)?;
    }
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).map_err(explain)?;
    let bound = socket::getsockname::<SockaddrStorage>(fd.as_raw_fd()).map_err(explain)?;
    Ok((fd, to_std(&bound).unwrap_or(address)))
}

fn cannot_listen(address: SocketAddr, errno: nix::Error) -> io::Error {
    let source = io::Error::from(errno);
    io::Error::new(source.kind(), format!("cannot listen on {address}: {source}"))
}

/// An address that is this process's to listen on, with as many listeners as it likes.
///
/// Listeners that share an address would also share it with another process of the same user, who would then get
/// every second connection. So the address is bound alone first, which fails where anybody has it, and opened for
/// more afterwards. The claim's own socket never listens.
pub struct AddressClaim {
    _fd: OwnedFd,
    address: SocketAddr,
}

impl AddressClaim {
    /// Claims `address`; with port 0, one that the kernel chooses.
    ///
    /// # Errors
    /// What the kernel said, with the address.
    pub fn new(address: SocketAddr) -> io::Result<AddressClaim> {
        // A process that was killed a moment ago may still be giving the address back: its ring ends after it.
        let mut patience = ADDRESS_PATIENCE;
        let (fd, address) = loop {
            match bound_socket(address, false) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && !patience.is_zero() => {
                    std::thread::sleep(ADDRESS_RETRY);
                    patience = patience.saturating_sub(ADDRESS_RETRY);
                }
                bound => break bound?,
            }
        };
        let opened = socket::setsockopt(&fd, sockopt::ReusePort, &true);
        opened.map_err(|errno| cannot_listen(address, errno))?;
        Ok(AddressClaim { _fd: fd, address })
    }

    /// The address, with its port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Small answers must not wait for more to come. Sockets that have no such switch do not need it.
pub(super) fn set_no_delay(fd: RawFd) {
    // SAFETY: the descriptor is open for the whole call and `one` outlives it.
    unsafe {
        let one = 1i32;
        let bytes = size_of::<i32>() as libc::socklen_t;
        libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, (&raw const one).cast(), bytes);
    }
}
