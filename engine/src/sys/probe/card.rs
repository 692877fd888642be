//! What the network cards do for what is sent through them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use nix::net::if_::if_nameindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GET_TX_CHECKSUM: u32 = 0x16;
const ETHTOOL_GET_SCATTER_GATHER: u32 = 0x18;
const ETHTOOL_GET_TSO: u32 = 0x1e;

/// A network card, real or not, as the kernel's offload switches stand (`ethtool -k`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its name.
    pub name: String,
    /// Whether it takes what is sent from several places; without, the kernel copies it together first.
    pub gathers: bool,
    /// Whether it makes checksums; without, the CPU reads every byte, and the card does not gather either.
    pub makes_checksums: bool,
    /// Whether it cuts large sends into segments.
    pub cuts_segments: bool,
}

#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// All cards in this network namespace.
///
/// # Errors
/// What the kernel said.
pub fn cards() -> io::Result<Vec<Card>> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let names = if_nameindex()?;
    let names = names.iter().map(|card| card.name().to_string_lossy().into_owned());
    Ok(names.map(|name| card(&socket, name)).collect())
}

/// What a card does not know a switch of, it does not do.
fn card(socket: &OwnedFd, name: String) -> Card {
    let is_on = |command| is_on(socket, &name, command).unwrap_or(false);
    Card {
        gathers: is_on(ETHTOOL_GET_SCATTER_GATHER),
        makes_checksums: is_on(ETHTOOL_GET_TX_CHECKSUM),
        cuts_segments: is_on(ETHTOOL_GET_TSO),
        name,
    }
}

fn is_on(socket: &OwnedFd, name: &str, command: u32) -> io::Result<bool> {
    let mut value = Value { command, data: 0 };
    // SAFETY: all fields of this structure are numbers, byte arrays and pointers that may be null.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = ptr::from_mut(&mut value).cast();
    // SAFETY: `request` and the `value` that it points to (a `struct ethtool_value`) outlive the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) } {
        0 => Ok(value.data != 0),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_a_card_that_gathers() {
        let cards = cards().unwrap();
        let Some(loopback) = cards.iter().find(|card| card.name == "lo") else {
            return println!("skipped: no loopback here");
        };
        assert!(loopback.gathers && loopback.makes_checksums, "{loopback:?}");
    }

    #[test]
    fn what_is_no_card_says_so() {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
        for name in ["no-such-card0", "a name longer than any card has"] {
            assert!(is_on(&socket, name, ETHTOOL_GET_TSO).is_err(), "{name}");
        }
    }
}
