//! Whether the kernel lets its own copies be counted here: breakpoints on its routines, and what stands in their way.

use std::io;

use ringlog::sys::probe::execution_breakpoint;

use super::finding::{Finding, Section, State};
use super::host::{Host, RIGHT_TO_ADMINISTER, chosen};

/// A routine that copies, known to every kernel that has a ring.
const ROUTINE: &str = "_copy_to_iter";
const GUEST: &str = "ringlog-harness copies --vm (counts in a small guest)";

pub(super) fn look(host: &Host) -> Section {
    let findings =
        vec![breakpoints(host, execution_breakpoint), paranoid(host), addresses(host), lockdown(host)];
    Section::new("counting copies", findings)
}

fn breakpoints(host: &Host, ask: impl FnOnce(u64) -> io::Result<()>) -> Finding {
    let without = "copies are not counted in the kernel here; what is declared and observed without it is";
    let refused = |found: String, cure: &str| {
        Finding::good("execution breakpoints", found).but(State::Missing, without, cure)
    };
    let Some(address) = host.text("/proc/kallsyms").and_then(|table| address_of(&table, ROUTINE)) else {
        return refused(format!("the kernel does not tell of {ROUTINE} (/proc/kallsyms)"), GUEST);
    };
    if address == 0 {
        return refused(
            format!("the address of {ROUTINE} is hidden from this user"),
            "sudo ringlog-harness doctor, with kernel.kptr_restrict at 0 or 1",
        );
    }
    let Err(error) = ask(address) else {
        return Finding::good("execution breakpoints", format!("granted (on {ROUTINE})"));
    };
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => refused(error.to_string(), "sudo ringlog-harness copies"),
        Some(libc::EINVAL) => {
            refused(format!("{error}: a kernel without CONFIG_KPROBES allows none on its own code"), GUEST)
        }
        _ => refused(format!("{error}: this machine has none to give"), GUEST),
    }
}

/// Of a symbol in `/proc/kallsyms`; 0 where it is hidden.
fn address_of(table: &str, symbol: &str) -> Option<u64> {
    table.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
        let is_code = kind.eq_ignore_ascii_case("t");
        (is_code && name == symbol).then(|| u64::from_str_radix(address, 16).ok())?
    })
}

fn paranoid(host: &Host) -> Finding {
    let name = "perf_event_paranoid";
    let Some(level) = host.number("/proc/sys/kernel/perf_event_paranoid") else {
        return Finding::good(name, "not there: a kernel without CONFIG_PERF_EVENTS").but(
            State::Missing,
            "neither breakpoints nor tracepoints nor samples",
            GUEST,
        );
    };
    if host.has_right(RIGHT_TO_ADMINISTER) {
        return Finding::good(name, format!("{level}, which does not bind this process (CAP_SYS_ADMIN)"));
    }
    let finding = Finding::good(name, level.to_string());
    if level <= 1 {
        return finding;
    }
    let without = "no samples or tracepoints of the kernel's own work for this user";
    finding.but(State::Degraded, without, "sudo sysctl kernel.perf_event_paranoid=1")
}

fn addresses(host: &Host) -> Finding {
    let level = host.number("/proc/sys/kernel/kptr_restrict");
    let finding =
        Finding::good("kptr_restrict", level.map_or("not told".to_owned(), |level| level.to_string()));
    match level {
        Some(2..) => finding.but(
            State::Degraded,
            "nobody is told addresses of the kernel: breakpoints and samples find no routine",
            "sudo sysctl kernel.kptr_restrict=1",
        ),
        _ => finding,
    }
}

fn lockdown(host: &Host) -> Finding {
    let text = host.text("/sys/kernel/security/lockdown");
    let mode = text.as_deref().and_then(chosen);
    let finding = Finding::good("lockdown", mode.unwrap_or("none (this kernel tells of no lockdown)"));
    match mode {
        Some("confidentiality") => finding.but(
            State::Degraded,
            "the kernel's own work is hidden from root as well: no breakpoints on it",
            GUEST,
        ),
        _ => finding,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::host::telling;

    const SYMBOLS: &str = "ffffffff81b6aab0 T _copy_to_iter_nofault\nffffffff81b6aac0 D _copy_to_iter\n\
                           ffffffff81b6aad0 T _copy_to_iter\nffffffff81b6aae0 t x\t[module]\n";

    #[test]
    fn a_routine_is_found_by_its_whole_name_among_code() {
        assert_eq!(address_of(SYMBOLS, ROUTINE), Some(0xffff_ffff_81b6_aad0));
        assert_eq!(address_of(&SYMBOLS.replace("ffffffff81b6aad0", "0000000000000000"), ROUTINE), Some(0));
        assert_eq!(address_of("garbage\n", ROUTINE), None);
    }

    #[test]
    fn every_refusal_of_a_breakpoint_has_its_words() {
        let (_root, told) = telling(&[("proc/kallsyms", SYMBOLS)]);
        let of = |errno| breakpoints(&told, |_| Err(io::Error::from_raw_os_error(errno)));
        assert!(of(libc::EPERM).cure.starts_with("sudo"));
        assert!(of(libc::EINVAL).found.contains("CONFIG_KPROBES"));
        assert!(of(libc::ENOSPC).found.contains("none to give"));
        let granted = breakpoints(&told, |address| {
            assert_eq!(address, 0xffff_ffff_81b6_aad0);
            Ok(())
        });
        assert_eq!(granted.state, State::Good);
        let hidden = SYMBOLS.replace("ffffffff81b6aad0", "0000000000000000");
        let (_root, hidden) = telling(&[("proc/kallsyms", &hidden)]);
        let unasked = |_| unreachable!("nobody asks for a breakpoint on nothing");
        assert!(breakpoints(&hidden, unasked).found.contains("hidden"));
        assert!(breakpoints(&Host::below("/nowhere"), unasked).found.contains("kallsyms"));
    }

    #[test]
    fn what_binds_users_does_not_bind_root() {
        let paranoid_path = "proc/sys/kernel/perf_event_paranoid";
        let (_root, user) = telling(&[
            (paranoid_path, "4\n"),
            ("proc/self/status", "CapEff:\t0000000000000000\n"),
            ("proc/sys/kernel/kptr_restrict", "2\n"),
            ("sys/kernel/security/lockdown", "none integrity [confidentiality]\n"),
        ]);
        let states = [paranoid(&user).state, addresses(&user).state, lockdown(&user).state];
        assert_eq!(states, [State::Degraded; 3]);
        let (_root, root) =
            telling(&[(paranoid_path, "4\n"), ("proc/self/status", "CapEff:\t000001ffffffffff\n")]);
        let states = [paranoid(&root).state, addresses(&root).state, lockdown(&root).state];
        assert_eq!(states, [State::Good; 3]);
        assert_eq!(paranoid(&Host::below("/nowhere")).state, State::Missing);
    }
}
