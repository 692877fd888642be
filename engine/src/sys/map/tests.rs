//! The guard and the lease on bare files, on this kernel.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use super::*;
use crate::sys::GUARDED_MAPS_MAX;
use crate::sys::write_map::WriteMap;

const MIB: usize = 1 << 20;

fn file(directory: &tempfile::TempDir) -> (PathBuf, File) {
    let path = directory.path().join("00000000000000000000.log");
    std::fs::write(&path, vec![7; MIB]).unwrap();
    let file = File::open(&path).unwrap();
    (path, file)
}

fn home() -> tempfile::TempDir {
    // Below the build directory: a disk's file system, not one in memory.
    let target = std::env::current_exe().unwrap();
    tempfile::tempdir_in(target.parent().unwrap()).unwrap()
}

fn truncate(path: &std::path::Path, bytes: u64) {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the path is a string that ends with a zero and outlives the call.
    assert_eq!(unsafe { libc::truncate(path.as_ptr(), bytes as i64) }, 0);
}

fn send(mapping: &Mapping, socket: &TcpStream, at: u64, bytes: u64) -> io::Result<usize> {
    let from = mapping.pointer(at, bytes);
    // SAFETY: `pointer` asserts the range; the mapping outlives the call.
    let sent = unsafe { libc::send(socket.as_raw_fd(), from, bytes as usize, libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (ours, listener.accept().unwrap().0)
}

/// A map, as soon as there is a place for one: a test beside takes every place for a moment.
fn mapped(file: &File) -> Arc<Mapping> {
    let begun = Instant::now();
    loop {
        match Mapping::of(file.as_fd(), MIB as u64) {
            Ok(mapping) => return mapping,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(10), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Somebody who has the file open for writing: there is no lease, the guard is alone.
fn unleased(directory: &tempfile::TempDir) -> (File, Arc<Mapping>) {
    let (path, file) = file(directory);
    let writer = File::options().write(true).open(path).unwrap();
    let mapping = mapped(&file);
    assert!(mapping.lease_refusal.get().unwrap().contains("open for writing"));
    (writer, mapping)
}

#[test]
fn the_kernel_refuses_to_send_what_is_no_longer_there() {
    let directory = home();
    let (writer, mapping) = unleased(&directory);
    let (ours, mut peer) = pair();
    assert_eq!(send(&mapping, &ours, 0, 8192).unwrap(), 8192);
    writer.set_len(4096).unwrap();
    let refused = send(&mapping, &ours, 4096, 8192).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EFAULT));
    // Nor what it would copy together with that.
    let refused = send(&mapping, &ours, 0, 12_288).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EFAULT));
    // The trap within the trap: the rest of the last page reads as zeros, and nobody says anything. Only the file's stamp
    // tells.
    writer.set_len(100).unwrap();
    assert_eq!(send(&mapping, &ours, 0, 4096).unwrap(), 4096);
    let mut received = vec![0; 8192 + 4096];
    peer.read_exact(&mut received).unwrap();
    assert_eq!(received[..8192 + 100], vec![7; 8192 + 100]);
    assert_eq!(received[8192 + 100..], vec![0; 3996]);
    assert_eq!(mapping.state(), MapState::Whole);
}

#[test]
fn a_load_behind_the_end_finds_a_lost_map_and_not_the_end_of_the_process() {
    let directory = home();
    let (writer, mapping) = unleased(&directory);
    mapping.populate(0, MIB as u64).unwrap();
    mapping.touch(0, MIB).unwrap();
    writer.set_len(100_000).unwrap();
    assert_eq!(mapping.populate(0, MIB as u64).unwrap_err().raw_os_error(), Some(libc::EFAULT));
    assert_eq!(mapping.state(), MapState::Whole, "nobody has loaded from it");
    assert_eq!(mapping.touch(0, MIB).unwrap_err().raw_os_error(), Some(libc::EFAULT));
    assert_eq!(mapping.state(), MapState::Lost);
    // On a thread that has no alternate stack as well.
    let other = home();
    let (writer, mapping) = unleased(&other);
    writer.set_len(0).unwrap();
    std::thread::spawn(move || {
        let off = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: switches the thread's alternate stack off, which lies elsewhere and stays.
        assert_eq!(unsafe { libc::sigaltstack(&raw const off, std::ptr::null_mut()) }, 0);
        assert!(mapping.touch(0, MIB).is_err());
        assert_eq!(mapping.state(), MapState::Lost);
    })
    .join()
    .unwrap();
}

#[test]
fn who_wants_to_change_a_leased_file_waits_until_its_map_is_given_up() {
    for how in ["truncate", "open to write", "open to truncate"] {
        let directory = home();
        let (path, file) = file(&directory);
        let mapping = mapped(&file);
        assert_eq!(mapping.lease_refusal.get(), None, "{how}");
        let (ours, _peer) = pair();
        assert_eq!(send(&mapping, &ours, 0, 8192).unwrap(), 8192, "{how}");
        // Who reads, renames or removes disturbs nobody.
        std::fs::read(&path).unwrap();
        std::fs::rename(&path, path.with_extension("renamed")).unwrap();
        std::fs::rename(path.with_extension("renamed"), &path).unwrap();
        assert_eq!(mapping.state(), MapState::Whole, "{how}");
        let began = Instant::now();
        match how {
            "truncate" => truncate(&path, 100),
            "open to write" => drop(File::options().write(true).open(&path).unwrap()),
            _ => drop(File::create(&path).unwrap()),
        }
        // Far below the 45 s that the kernel grants.
        assert!(began.elapsed() < Duration::from_secs(10), "{how}: {:?}", began.elapsed());
        assert_eq!(mapping.state(), MapState::GivenUp, "{how}");
        assert_eq!(send(&mapping, &ours, 0, 8192).unwrap_err().raw_os_error(), Some(libc::EFAULT), "{how}");
        assert!(mapping.populate(0, 4096).is_err() && mapping.touch(0, 4096).is_err(), "{how}");
        assert_eq!(mapping.state(), MapState::GivenUp, "{how}");
    }
}

#[test]
fn many_leases_are_broken_at_once_and_each_map_of_a_file_has_its_own() {
    let directory = home();
    let (path, one) = file(&directory);
    let again = File::open(&path).unwrap();
    let first = mapped(&one);
    let second = mapped(&again);
    let third = mapped(&one);
    assert_eq!([&first, &second, &third].map(|mapping| mapping.lease_refusal.get()), [None; 3]);
    drop(second);
    truncate(&path, 5);
    assert_eq!([first.state(), third.state()], [MapState::GivenUp; 2]);
    let homes: Vec<_> = (0..40).map(|_| home()).collect();
    let maps: Vec<_> = homes
        .iter()
        .map(|home| {
            let (path, file) = file(home);
            (path, mapped(&file))
        })
        .collect();
    std::thread::scope(|scope| {
        for (path, _) in &maps {
            scope.spawn(|| truncate(path, 0));
        }
    });
    assert!(maps.iter().all(|(_, mapping)| mapping.state() == MapState::GivenUp));
}

#[test]
fn no_more_maps_than_can_be_guarded() {
    let directory = home();
    let (_, file) = file(&directory);
    let mut maps = Vec::new();
    let refused = loop {
        match Mapping::of(file.as_fd(), 4096) {
            Ok(mapping) => maps.push(mapping),
            Err(error) => break error,
        }
        assert!(maps.len() <= GUARDED_MAPS_MAX);
    };
    assert!(refused.to_string().contains("1024"), "{refused}");
    let window =
        File::options().write(true).read(true).create_new(true).open(directory.path().join("window"));
    let window = window.unwrap();
    window.set_len(4096).unwrap();
    WriteMap::of_file(window.as_fd(), 0, 4096).expect("places of its own");
    drop(maps);
    drop(mapped(&file));
    assert!(Mapping::of(file.as_fd(), 0).is_err());
}

/// Signals of an embedding program are its own: bus errors elsewhere, and real-time signals.
#[test]
fn a_bus_error_elsewhere_is_the_previous_handlers_business() {
    static SEEN: AtomicU32 = AtomicU32::new(0);
    extern "C" fn theirs(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the kernel passes a valid `siginfo_t`; the page is this test's own mapping.
        let (address, mapped) = unsafe {
            let address = (*info).si_addr() as usize & !(PAGE - 1);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            (address, libc::mmap(address as *mut _, PAGE, libc::PROT_READ, flags, -1, 0))
        };
        if mapped as usize == address {
            SEEN.fetch_add(1, Ordering::Relaxed);
        }
    }
    const CHILD: &str = "RINGLOG_TEST_BUS_ERROR";
    if std::env::var_os(CHILD).is_none() {
        // In a process of its own: handlers are the process's, and tests run side by side.
        for case in ["handled", "default"] {
            let name = "sys::map::tests::a_bus_error_elsewhere_is_the_previous_handlers_business";
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            let status = child.args(["--exact", name]).env(CHILD, case).output().unwrap().status;
            match case {
                "handled" => assert!(status.success(), "{status}"),
                _ => {
                    use std::os::unix::process::ExitStatusExt;
                    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
                }
            }
        }
        return;
    }
    let handled = std::env::var(CHILD).unwrap() == "handled";
    if handled {
        // SAFETY: all zeros is a valid `sigaction`; the handler has the type that SA_SIGINFO asks for.
        unsafe {
            let mut action = std::mem::zeroed::<libc::sigaction>();
            action.sa_sigaction = theirs as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
        }
    }
    let directory = home();
    let (writer, mapping) = unleased(&directory);
    let other = directory.path().join("other");
    let mut foreign = File::create_new(&other).unwrap();
    foreign.write_all(&[1; 8192]).unwrap();
    let theirs = File::open(&other).unwrap();
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe {
        let fd = theirs.as_raw_fd();
        libc::mmap(std::ptr::null_mut(), 8192, libc::PROT_READ, libc::MAP_SHARED, fd, 0)
    };
    assert_ne!(start, libc::MAP_FAILED);
    foreign.set_len(0).unwrap();
    // SAFETY: within the mapping; the bus error that it raises is what is tested.
    let byte = unsafe { (start as *const u8).read_volatile() };
    // Without a handler the process is gone by now.
    assert_eq!((byte, SEEN.load(Ordering::Relaxed), handled), (0, 1, true));
    // Both kinds of map by the one handler.
    let window =
        File::options().write(true).read(true).create_new(true).open(directory.path().join("window"));
    let window = window.unwrap();
    window.set_len(8192).unwrap();
    let received_into = WriteMap::of_file(window.as_fd(), 0, 8192).unwrap();
    window.set_len(0).unwrap();
    // SAFETY: within the mapping, which is alive and this test's alone; the bus error that it raises is what is tested.
    unsafe { received_into.base().as_ptr().add(5000).write_volatile(1) };
    assert!(received_into.is_lost());
    writer.set_len(0).unwrap();
    assert!(mapping.touch(0, MIB).is_err());
    assert_eq!((mapping.state(), SEEN.load(Ordering::Relaxed)), (MapState::Lost, 1));
}
