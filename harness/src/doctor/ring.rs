//! io_uring: whether there is any, why not, and what it offers.

use ringlog::sys::UringError;
use ringlog::sys::probe::{Operation, RingOffer};

use super::finding::{Finding, Section, State};
use super::host::{Host, version};
use super::memlock;

/// The Linux that each set-up flag came with.
const FLAGS_SINCE: [(&str, &str); 4] =
    [("SUBMIT_ALL", "5.18"), ("SINGLE_ISSUER", "6.0"), ("DEFER_TASKRUN", "6.1"), ("NO_SQARRAY", "6.6")];

pub(super) fn look(host: &Host, offer: &Result<RingOffer, UringError>, arena: memlock::Arena) -> Section {
    let findings = match offer {
        Ok(offer) => granted(host, offer, arena),
        Err(error) => vec![refused(host, error)],
    };
    Section::new("io_uring", findings)
}

fn granted(host: &Host, offer: &RingOffer, arena: memlock::Arena) -> Vec<Finding> {
    let known = |name: &str| {
        let operation = offer.operations.iter().find(|operation| operation.name == name);
        *operation.expect("the probe asks for it")
    };
    vec![
        Finding::good("io_uring", format!("granted by Linux {}", host.release())),
        flags(&offer.setup.granted, &offer.setup.refused),
        operations(
            "zero-copy sends",
            &[known("SEND_ZC"), known("SENDMSG_ZC")],
            "egress direct_zc and tail_zc cannot be used",
        ),
        operations("splice and tee", &[known("SPLICE"), known("TEE")], "egress ring_splice cannot be used"),
        clones(host, offer.clones_buffers),
        memlock::look(host, offer, arena),
    ]
}

fn clones(host: &Host, known: Option<bool>) -> Finding {
    let name = "clone buffers";
    let without = "each ring registers its memory itself, and each is charged to the memlock limit";
    match known {
        Some(true) => Finding::good(name, "a ring can take over the registered memory of another"),
        Some(false) => Finding::good(name, "not known").but(State::Missing, without, "Linux 6.12 or newer"),
        None => Finding::good(name, "not asked: no second ring was granted beside the first").but(
            State::Missing,
            "an engine of more than one shard cannot run here",
            memlock::cure(host),
        ),
    }
}

fn flags(granted: &[&str], refused: &[&str]) -> Finding {
    let found = match granted {
        [] => "none accepted".to_owned(),
        flags => flags.join(" | "),
    };
    if refused.is_empty() {
        return Finding::good("set-up flags", found);
    }
    let needed = FLAGS_SINCE.iter().filter(|(flag, _)| refused.contains(flag));
    let needed: Vec<String> = needed.map(|(flag, since)| format!("{flag} (Linux {since})")).collect();
    Finding::good("set-up flags", format!("{found}; not known: {}", needed.join(", "))).but(
        State::Degraded,
        "completions interrupt a shard at its work instead of waiting for its visit: more CPU per operation",
        "Linux 6.6 or newer, which knows all of them",
    )
}

fn operations(name: &str, asked: &[Operation], without: &str) -> Finding {
    let list = |known: bool| {
        let of_kind = asked.iter().filter(|operation| operation.known == known);
        of_kind.map(|operation| format!("IORING_OP_{}", operation.name)).collect::<Vec<_>>()
    };
    let lacking = list(false);
    if lacking.is_empty() {
        return Finding::good(name, list(true).join(", "));
    }
    let since = asked.iter().rfind(|operation| !operation.known).map_or("", |operation| operation.since);
    Finding::good(name, format!("not known: {}", lacking.join(", "))).but(
        State::Missing,
        without,
        format!("Linux {since} or newer"),
    )
}

/// Why there is none. The engine's own words name every cause; here the one that holds is picked by what the host tells.
fn refused(host: &Host, error: &UringError) -> Finding {
    let (found, cure) = match error {
        UringError::Missing if version(&host.release()) < (5, 19) => (
            format!("ENOSYS: Linux {} is too old", host.release()),
            "Linux 5.19 or newer; 6.6 knows every flag".to_owned(),
        ),
        UringError::Missing => (
            format!(
                "ENOSYS: Linux {} without CONFIG_IO_URING, or a sandbox that calls itself so",
                host.release()
            ),
            "a kernel built with CONFIG_IO_URING=y (inside gVisor and WSL1 there is none)".to_owned(),
        ),
        UringError::Forbidden { .. } => forbidden(host),
        UringError::NoMemory { memlock_bytes } => (
            format!("ENOMEM: no memory for its queues; the memlock limit is {memlock_bytes} bytes"),
            memlock::cure(host),
        ),
        UringError::Other { what, source } => (
            format!("{what} could not be set up: {source}"),
            "ulimit -n 65536, where descriptors ran out".to_owned(),
        ),
    };
    Finding::good("io_uring", found).but(State::Missing, "the engine cannot run here", cure)
}

fn forbidden(host: &Host) -> (String, String) {
    let everybody = "sudo sysctl kernel.io_uring_disabled=0".to_owned();
    match host.number("/proc/sys/kernel/io_uring_disabled") {
        Some(2) => ("EPERM: kernel.io_uring_disabled is 2: nobody may use it".to_owned(), everybody),
        Some(1) => {
            let group = host.number("/proc/sys/kernel/io_uring_group").unwrap_or(-1);
            let found = format!(
                "EPERM: kernel.io_uring_disabled is 1: only root and members of group {group} \
                 (kernel.io_uring_group) may"
            );
            (found, format!("{everybody}, or sudo sysctl kernel.io_uring_group=$(id -g)"))
        }
        _ if host.status("Seccomp").is_some_and(|mode| mode != "0") => (
            "EPERM: a seccomp filter refuses it, as those of most container engines do".to_owned(),
            "docker run --security-opt seccomp=unconfined, or a profile that allows io_uring_setup, \
             io_uring_enter, io_uring_register"
                .to_owned(),
        ),
        _ => (
            "EPERM, neither by sysctl nor by seccomp: a security module (SELinux, AppArmor) refuses it"
                .to_owned(),
            "see who: sudo dmesg | grep -i -e denied -e apparmor | tail".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::host::{Texts, telling};

    const DISABLED: &str = "proc/sys/kernel/io_uring_disabled";
    const STATUS: &str = "proc/self/status";

    #[test]
    fn a_refusal_is_put_down_to_the_cause_that_holds() {
        let denied = || UringError::Forbidden { disabled: "read elsewhere".to_owned() };
        let cases: [(Texts<'_>, UringError, &str, &str); 8] = [
            (&[(DISABLED, "2\n"), (STATUS, "Seccomp:\t2\n")], denied(), "is 2", "io_uring_disabled=0"),
            (
                &[(DISABLED, "1\n"), ("proc/sys/kernel/io_uring_group", "977\n")],
                denied(),
                "group 977",
                "io_uring_group=$(id -g)",
            ),
            (&[(DISABLED, "0\n"), (STATUS, "Seccomp:\t2\n")], denied(), "seccomp", "seccomp=unconfined"),
            (&[(STATUS, "Seccomp:\t2\n")], denied(), "seccomp", "seccomp=unconfined"),
            (&[(DISABLED, "0\n"), (STATUS, "Seccomp:\t0\n")], denied(), "security module", "dmesg"),
            (
                &[("proc/sys/kernel/osrelease", "4.18.0-553.el8\n")],
                UringError::Missing,
                "4.18.0-553.el8 is too old",
                "5.19",
            ),
            (
                &[("proc/sys/kernel/osrelease", "6.1.0\n")],
                UringError::Missing,
                "without CONFIG_IO_URING",
                "CONFIG_IO_URING=y",
            ),
            (&[], UringError::NoMemory { memlock_bytes: 65536 }, "65536 bytes", "memlock"),
        ];
        for (texts, error, found, cure) in cases {
            let (_root, host) = telling(texts);
            let section = look(&host, &Err(error), memlock::Arena { shards: 1, bytes_each: 1 << 20 });
            let [finding] = section.findings.as_slice() else { panic!("{section:?}") };
            assert_eq!(finding.state, State::Missing);
            assert!(finding.found.contains(found), "{texts:?}: {}", finding.found);
            assert!(finding.cure.contains(cure), "{texts:?}: {}", finding.cure);
        }
    }

    #[test]
    fn flags_and_operations_of_an_older_kernel_are_named_with_the_kernel_that_has_them() {
        let of = |known| clones(&Host::below("/nowhere"), known);
        assert_eq!((of(Some(true)).state, of(Some(false)).state), (State::Good, State::Missing));
        assert!(of(Some(false)).cure.contains("6.12"));
        assert!(!of(None).cure.contains("6.12") && of(None).cure.contains("memlock"), "{:?}", of(None));
        let finding = flags(&["SUBMIT_ALL", "SINGLE_ISSUER", "DEFER_TASKRUN"], &["NO_SQARRAY"]);
        assert_eq!(finding.state, State::Degraded);
        assert!(finding.found.contains("not known: NO_SQARRAY (Linux 6.6)"), "{finding:?}");
        let sends = [
            Operation { name: "SEND_ZC", since: "6.0", known: true },
            Operation { name: "SENDMSG_ZC", since: "6.1", known: false },
        ];
        let finding = operations("zero-copy sends", &sends, "none");
        assert_eq!((finding.state, finding.cure.as_str()), (State::Missing, "Linux 6.1 or newer"));
        assert!(!finding.found.contains("OP_SEND_ZC"), "{finding:?}");
    }
}
