//! What the ledger asks of the kernel that no safe crate offers: execution breakpoints, tracepoint counters, and a few
//! settings of network cards.
//!
//! The only `unsafe` of the harness. A breakpoint is armed, disarmed, and read after that: while its samples are copied
//! out of the ring that the kernel shares with us, nobody writes there. What the samples mean is `kernel`'s.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Bytes of the ring for one breakpoint's samples: 40 each, some 50,000 of them.
const SAMPLES_BYTES: usize = 2 << 20;
const PAGE_BYTES: usize = 4096;
/// Where in the first page of the mapping `struct perf_event_mmap_page` has `data_head`.
const DATA_HEAD_AT: usize = 1024;

const TYPE_TRACEPOINT: u32 = 2;
const TYPE_BREAKPOINT: u32 = 5;
const BREAK_ON_EXECUTION: u32 = 4;
const SAMPLE_TID: u64 = 1 << 1;
const SAMPLE_REGS_INTR: u64 = 1 << 18;
const FLAG_DISABLED: u64 = 1;
/// CX, DX and SI in the numbering of x86 (`asm/perf_regs.h`).
const REGISTERS: u64 = 1 << 2 | 1 << 3 | 1 << 4;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
const RECORD_SAMPLE: u32 = 9;
const IOC_ENABLE: libc::c_ulong = 0x2400;
const IOC_DISABLE: libc::c_ulong = 0x2401;

/// `struct perf_event_attr`, as far as the version of 112 bytes (Linux 4.1) goes.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    break_on: u32,
    address: u64,
    length: u64,
    branch_sample_type: u64,
    sample_regs_user: u64,
    sample_stack_user: u32,
    clock: i32,
    sample_regs_intr: u64,
    aux_watermark: u32,
    sample_max_stack: u16,
    reserved: u16,
}

const _: () = assert!(size_of::<Attributes>() == 112);

/// Who came by a breakpoint, and with what in the registers that carry a third, fourth and second argument.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub process: i32,
    pub thread: i32,
    pub cx: u64,
    pub dx: u64,
    pub si: u64,
}

/// A breakpoint on one kernel address on one CPU, disarmed.
pub(super) struct Breakpoint {
    event: File,
    samples: NonNull<u8>,
}

/// Counts how often one thread passes a tracepoint.
pub(super) struct Passes(File);

fn open_event(attributes: &Attributes, thread: i32, cpu: i32) -> io::Result<File> {
    // SAFETY: the kernel reads 112 bytes of attributes, as many as `size` says and the structure has.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            ptr::from_ref(attributes),
            thread,
            cpu,
            -1,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    let fd = i32::try_from(fd).ok().filter(|&fd| fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the call above made this descriptor, and nobody else knows of it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn control(event: &File, request: libc::c_ulong) -> io::Result<()> {
    // SAFETY: these two requests of a perf event take no memory, only the number.
    match unsafe { libc::ioctl(event.as_raw_fd(), request, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn counted(mut event: &File) -> io::Result<u64> {
    let mut count = [0; 8];
    event.read_exact(&mut count)?;
    Ok(u64::from_ne_bytes(count))
}

impl Breakpoint {
    /// # Errors
    /// `EPERM` without the privilege, `EINVAL` or `ENOSPC` where the machine has no breakpoints to give.
    pub(super) fn open(address: u64, cpu: i32) -> io::Result<Breakpoint> {
        let attributes = Attributes {
            kind: TYPE_BREAKPOINT,
            size: size_of::<Attributes>() as u32,
            sample_period: 1,
            sample_type: SAMPLE_TID | SAMPLE_REGS_INTR,
            flags: FLAG_DISABLED,
            break_on: BREAK_ON_EXECUTION,
            address,
            length: size_of::<libc::c_long>() as u64,
            sample_regs_intr: REGISTERS,
            ..Attributes::default()
        };
        let event = open_event(&attributes, -1, cpu)?;
        // SAFETY: a fresh shared mapping of the event, placed by the kernel: it overlaps nothing of ours.
        let mapped = unsafe {
            libc::mmap(
                ptr::null_mut(),
                PAGE_BYTES + SAMPLES_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                event.as_raw_fd(),
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let samples = NonNull::new(mapped.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Breakpoint { event, samples })
    }

    pub(super) fn arm(&self) -> io::Result<()> {
        control(&self.event, IOC_ENABLE)
    }

    /// Disarms it and gives `take` every sample.
    ///
    /// # Errors
    /// When samples were lost: a count with gaps is none.
    pub(super) fn read(&self, mut take: impl FnMut(Sample)) -> io::Result<()> {
        control(&self.event, IOC_DISABLE)?;
        let passed = counted(&self.event)?;
        // SAFETY: the event is disarmed on its one CPU, so the kernel writes neither the head nor samples; the mapping is
        // PAGE_BYTES + SAMPLES_BYTES long, and the head lies at a multiple of 8 within its first page.
        let head = unsafe { self.samples.as_ptr().add(DATA_HEAD_AT).cast::<u64>().read_volatile() };
        let head = usize::try_from(head).unwrap_or(usize::MAX).min(SAMPLES_BYTES);
        let mut bytes = vec![0; head];
        // SAFETY: as above; `head` was cut to the length of the samples, and nobody moves the tail, so the kernel never
        // wrapped around: it drops what does not fit.
        unsafe { ptr::copy_nonoverlapping(self.samples.as_ptr().add(PAGE_BYTES), bytes.as_mut_ptr(), head) };
        let mut seen = 0;
        let mut rest = &bytes[..];
        while let Some((record, behind)) = cut_record(rest) {
            rest = behind;
            if let Some(sample) = parse_sample(record) {
                seen += 1;
                take(sample);
            }
        }
        if seen == passed {
            return Ok(());
        }
        Err(io::Error::other(format!("{passed} passes of a breakpoint, {seen} samples of them")))
    }
}

impl Drop for Breakpoint {
    fn drop(&mut self) {
        // SAFETY: the mapping that `open` made, with its length; no reference into it outlives `read`.
        unsafe { libc::munmap(self.samples.as_ptr().cast(), PAGE_BYTES + SAMPLES_BYTES) };
    }
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The first record of a ring, header and all, and what follows it.
fn cut_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let size = word32(bytes, 4)? >> 16;
    bytes.split_at_checked(size as usize).filter(|_| size >= 8)
}

/// A record is its kind (4 bytes), misc (2), size (2); then a sample has process, thread, the registers' ABI, registers.
fn parse_sample(record: &[u8]) -> Option<Sample> {
    if word32(record, 0)? != RECORD_SAMPLE {
        return None;
    }
    Some(Sample {
        process: word32(record, 8)? as i32,
        thread: word32(record, 12)? as i32,
        cx: word64(record, 24)?,
        dx: word64(record, 32)?,
        si: word64(record, 40)?,
    })
}

impl Passes {
    /// Of the tracepoint with that number, by that thread, from now on.
    ///
    /// # Errors
    /// `EPERM` without the privilege.
    pub(super) fn count(tracepoint: u64, thread: i32) -> io::Result<Passes> {
        let size = size_of::<Attributes>() as u32;
        let attributes =
            Attributes { kind: TYPE_TRACEPOINT, size, config: tracepoint, ..Attributes::default() };
        open_event(&attributes, thread, -1).map(Passes)
    }

    pub(super) fn so_far(&self) -> io::Result<u64> {
        counted(&self.0)
    }
}

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GET_SG: u32 = 0x18;
const ETHTOOL_SET_SG: u32 = 0x19;

fn request_for(card: &str) -> io::Result<libc::ifreq> {
    if card.len() >= libc::IFNAMSIZ || !card.is_ascii() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("`{card}` is no name of a card")));
    }
    // SAFETY: all fields of this structure are numbers, byte arrays and pointers that may be null.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(card.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn ask_card(request: &mut libc::ifreq, what: libc::c_ulong) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: every caller sets the field of the union that `what` reads or writes, and a pointer in it to memory of its
    // own that lives as long as the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), what as _, ptr::from_mut(request)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn address_of(address: Ipv4Addr) -> libc::sockaddr {
    let mut bytes = [0; 14];
    // Two bytes of port, then the address.
    for (to, from) in bytes[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: bytes }
}

/// Gives a card its address, in a network of 256, and takes it into use.
///
/// # Errors
/// What the kernel said, for instance that there is no such card.
pub(crate) fn bring_up(card: &str, address: Ipv4Addr) -> io::Result<()> {
    let mut request = request_for(card)?;
    request.ifr_ifru.ifru_addr = address_of(address);
    ask_card(&mut request, libc::SIOCSIFADDR)?;
    let mut request = request_for(card)?;
    request.ifr_ifru.ifru_addr = address_of(Ipv4Addr::new(255, 255, 255, 0));
    ask_card(&mut request, libc::SIOCSIFNETMASK)?;
    let mut request = request_for(card)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ask_card(&mut request, libc::SIOCSIFFLAGS)
}

#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

fn ethtool(card: &str, command: u32, data: u32) -> io::Result<u32> {
    let mut value = EthtoolValue { command, data };
    let mut request = request_for(card)?;
    request.ifr_ifru.ifru_data = ptr::from_mut(&mut value).cast();
    ask_card(&mut request, SIOCETHTOOL)?;
    Ok(value.data)
}

/// Whether a card gathers what it sends from several places (`ethtool -k CARD`, scatter-gather).
///
/// # Errors
/// What the kernel said.
pub(super) fn gathers(card: &str) -> io::Result<bool> {
    Ok(ethtool(card, ETHTOOL_GET_SG, 0)? != 0)
}

/// Stops that, as `ethtool -K CARD sg off` does.
///
/// # Errors
/// What the kernel said.
pub(super) fn stop_gathering(card: &str) -> io::Result<()> {
    ethtool(card, ETHTOOL_SET_SG, 0).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_cut_out_of_a_ring_and_other_records_passed_over() {
        let mut ring = Vec::new();
        for (kind, words) in [(2u32, 2u64), (RECORD_SAMPLE, 5)] {
            ring.extend(kind.to_ne_bytes());
            ring.extend(((8 + words as u32 * 8) << 16).to_ne_bytes());
            (0..words).for_each(|word| ring.extend((word * 100).to_ne_bytes()));
        }
        ring[24 + 8..24 + 16].copy_from_slice(&[7, 0, 0, 0, 9, 0, 0, 0]);
        let (lost, rest) = cut_record(&ring).unwrap();
        assert!(parse_sample(lost).is_none());
        let (sample, rest) = cut_record(rest).unwrap();
        let Sample { process, thread, cx, dx, si } = parse_sample(sample).unwrap();
        assert_eq!((process, thread, cx, dx, si), (7, 9, 200, 300, 400));
        assert!(cut_record(rest).is_none());
        assert!(cut_record(&sample[..20]).is_none(), "half a record is none");
    }

    #[test]
    fn the_loopback_gathers_and_what_is_no_card_says_so() {
        assert!(gathers("lo").unwrap());
        assert!(gathers("no-such-card0").is_err());
        assert!(gathers("a name longer than any card has").is_err());
    }
}
