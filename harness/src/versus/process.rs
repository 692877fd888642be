//! Which process of this machine listens where: what its CPU time and memory are read from.
//!
//! ```text
//! address -> local? -> /proc/net/tcp{,6}: a listener's inode -> /proc/PID/fd/N -> "socket:[inode]" -> PID
//! ```
//!
//! Descriptors of other users' processes can be seen by root alone; then there is no process, and the run says so.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// State of a socket that listens, as the kernel prints it.
const LISTEN: &str = "0A";

/// The process of a target.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub id: i32,
    /// Its name, as the kernel keeps it.
    pub name: String,
    /// The cores that it may use.
    pub cores: Vec<usize>,
}

/// The process that listens on an address of this machine.
///
/// # Errors
/// Why there is none, in words.
pub fn listener(address: SocketAddr) -> Result<Process, String> {
    // Only an address of this machine can be bound to.
    if UdpSocket::bind((address.ip(), 0)).is_err() {
        return Err(format!("{} is another machine's", address.ip()));
    }
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let inodes: Vec<u64> = tables.iter().flat_map(|table| listening_inodes(table, address)).collect();
    if inodes.is_empty() {
        return Err(format!("nothing listens on {address} in this network namespace"));
    }
    let mut ids: Vec<i32> = process_ids().filter(|&id| holds(id, &inodes)).collect();
    ids.sort_unstable();
    // Of several (a parent and its workers) the first is the oldest.
    let id = *ids.first().ok_or_else(|| format!("the process on {address} is another user's"))?;
    Ok(Process::of(id))
}

impl Process {
    /// What is known of a process by its number; one that is gone has no name and no cores.
    #[must_use]
    pub fn of(id: i32) -> Process {
        let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default().trim_end().to_owned();
        let set = sched_getaffinity(Pid::from_raw(id)).unwrap_or_default();
        let cores = (0..CpuSet::count()).filter(|&core| set.is_set(core).unwrap_or(false)).collect();
        Process { id, name, cores }
    }
}

fn process_ids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn holds(id: i32, inodes: &[u64]) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
    let inode = |link: &str| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok();
    let links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    links.filter_map(|link| inode(link.to_str()?)).any(|inode| inodes.contains(&inode))
}

/// Inodes of the sockets in a table of the kernel's that listen on the address, or on all addresses of its port.
///
/// ```text
///   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
///    0: 0100007F:2384 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 ..
/// ```
fn listening_inodes(table: &str, address: SocketAddr) -> Vec<u64> {
    let inode_of = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (&local, &state, &inode) = (words.get(1)?, words.get(3)?, words.get(9)?);
        let (ip, port) = local.rsplit_once(':')?;
        let ip = parse_ip(ip)?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let listens = state == LISTEN && port == address.port();
        let here = ip.is_unspecified() || ip.to_canonical() == address.ip().to_canonical();
        (listens && here).then(|| inode.parse().ok())?
    };
    table.lines().skip(1).filter_map(inode_of).collect()
}

/// The kernel prints an address as words of 32 bits in the machine's order, each holding bytes in the network's.
fn parse_ip(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match hex.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(word(0)?))),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index * 8)?);
            }
            Some(IpAddr::V6(Ipv6Addr::from(bytes)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
        0: 0100007F:2384 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0\n   \
        1: 00000000:2385 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1 0 100 0 0 10 0\n   \
        2: 0100007F:2384 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 333 1 0 100 0 0 10 0\n";
    const TABLE6: &str = "  sl  local_address remote_address st tx_queue rx_queue tr tm->when retrnsmt uid timeout inode\n \
        0: 0000000000000000FFFF00000100007F:2384 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 444 1\n \
        1: 00000000000000000000000001000000:2384 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 555 1\n";

    #[test]
    #[cfg(target_endian = "little")]
    fn listeners_are_told_from_connections_and_from_other_addresses() {
        let inodes = |table, address: &str| listening_inodes(table, address.parse().unwrap());
        assert_eq!(inodes(TABLE, "127.0.0.1:9092"), [111]);
        assert_eq!(inodes(TABLE, "127.0.0.1:9093"), [222], "on all addresses");
        assert!(inodes(TABLE, "127.0.0.2:9092").is_empty());
        assert_eq!(inodes(TABLE6, "127.0.0.1:9092"), [444], "an address of the old kind in the new notation");
        assert_eq!(inodes(TABLE6, "[::1]:9092"), [555]);
        for damaged in ["", "head\n0: zz:2384 x 0A", "head\n0: 0100007F 0:0 0A 0 0 0 0 0 1"] {
            assert!(inodes(damaged, "127.0.0.1:9092").is_empty(), "{damaged}");
        }
    }

    #[test]
    fn this_process_is_found_by_a_socket_of_its_own() {
        for address in ["127.0.0.1:0", "0.0.0.0:0"] {
            let socket = TcpListener::bind(address).unwrap();
            let address = SocketAddr::from(([127, 0, 0, 1], socket.local_addr().unwrap().port()));
            let found = listener(address).unwrap();
            assert_eq!(found.id, std::process::id() as i32);
            assert!(!found.name.is_empty() && !found.cores.is_empty(), "{found:?}");
            drop(socket);
            assert!(listener(address).unwrap_err().contains("nothing listens"));
        }
    }

    #[test]
    fn an_address_of_another_machine_has_no_process_here() {
        // Set aside for documentation: nobody's.
        let error = listener("192.0.2.1:9092".parse().unwrap()).unwrap_err();
        assert!(error.contains("another machine's"), "{error}");
    }
}
