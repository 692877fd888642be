//! What a user of `doctor` may rely on: JSON of a shape that stays, a page that fits, an exit status that means something,
//! no traces, on hosts that grant little as well.

use std::path::Path;
use std::process::{Command, Output};

use ringlog_harness::doctor::{Examination, Finding, State};

/// Runs it in a shell, after `limits`, which may end in a command that runs others.
fn doctor_under(limits: &str, words: &[&str], data_dir: &Path) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limits} \"$0\" \"$@\""), env!("CARGO_BIN_EXE_ringlog-harness"), "doctor"]);
    command.args(words).arg("--data-dir").arg(data_dir).output().expect("a shell starts")
}

fn examination(output: &Output) -> Examination {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn finding<'a>(seen: &'a Examination, name: &str) -> &'a Finding {
    seen.findings().find(|finding| finding.name == name).unwrap_or_else(|| panic!("{name}: {seen:#?}"))
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Of every finding, good or not: whoever reads the JSON may rely on it.
fn check(seen: &Examination) {
    for finding in seen.findings() {
        let is_good = finding.state == State::Good;
        assert!(!finding.name.is_empty() && !finding.found.is_empty(), "{finding:?}");
        assert_eq!(finding.consequence.is_empty(), is_good, "{finding:?}");
        assert_eq!(finding.cure.is_empty(), is_good, "{finding:?}");
    }
    let mut names: Vec<&str> = seen.findings().map(|finding| finding.name.as_str()).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count, "names are keys");
}

#[test]
fn the_json_is_complete_and_the_exit_status_follows_it() {
    let home = home();
    let output = doctor_under("exec", &["--json"], home.path());
    let seen = examination(&output);
    check(&seen);
    let sections: Vec<&str> = seen.sections.iter().map(|section| section.name.as_str()).collect();
    assert_eq!(
        sections,
        ["io_uring", "data directory", "counting copies", "network", "processors", "memory"]
    );
    for name in ["file system", "durable", "O_DIRECT", "reflink", "leases", "pipes", "execution breakpoints"]
    {
        finding(&seen, name);
    }
    for name in ["lockdown", "tcp_wmem", "cores", "quota", "steal", "available", "swap"] {
        finding(&seen, name);
    }
    assert_eq!(output.status.success(), seen.can_run, "{output:?}");
    assert_eq!(seen.choice.is_some(), finding(&seen, "io_uring").state == State::Good);
    if let Some(choice) = &seen.choice {
        assert!(!choice.cores.is_empty() && choice.arena_bytes > 0, "{choice:?}");
        let flags = &finding(&seen, "set-up flags").found;
        assert!(choice.ring_flags.iter().all(|flag| flags.contains(flag)), "{flags}");
    }
    let left = std::fs::read_dir(home.path()).unwrap().count();
    assert_eq!(left, 0, "it leaves no trace");
}

#[test]
fn the_page_says_the_same_in_lines_that_fit() {
    let home = home();
    let output = doctor_under("exec", &[], home.path());
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(page.lines().all(|line| line.chars().count() <= 100), "{page}");
    assert_eq!(page.contains("the engine can run here"), output.status.success(), "{page}");
    let bad = page.lines().filter(|line| line.starts_with("  less") || line.starts_with("  none")).count();
    for mark in ["so: ", "do: "] {
        let lines = page.lines().filter(|line| line.trim_start().starts_with(mark)).count();
        assert_eq!(lines, bad, "every line that is not good says what follows and what to do: {page}");
    }
}

/// Root may lock as much as it likes, unless that right is taken from it.
fn with_memlock_of(kib: u32) -> String {
    let right = "--bounding-set=-ipc_lock --inh-caps=-ipc_lock";
    format!("ulimit -l {kib}; setpriv {right} true 2>&1 && exec setpriv {right} \"$0\" \"$@\"; exec")
}

#[test]
fn a_small_memlock_limit_is_told_with_the_part_that_fits_and_what_it_does_to_comparisons() {
    let home = home();
    let output = doctor_under(&with_memlock_of(6144), &["--json"], home.path());
    let seen = examination(&output);
    check(&seen);
    let (Some(choice), true) = (&seen.choice, finding(&seen, "io_uring").state == State::Good) else {
        return println!("skipped: no io_uring: {}", finding(&seen, "io_uring").found);
    };
    let memlock = finding(&seen, "memlock");
    assert!(memlock.found.contains("a limit of 6144 KiB"), "{memlock:?}");
    if memlock.found.contains("CAP_IPC_LOCK overrides") {
        return println!("skipped: this process may lock memory beyond its limit");
    }
    assert_eq!(memlock.state, State::Degraded);
    assert!(choice.registered_bytes <= 6 << 20 && choice.registered_bytes < choice.arena_bytes, "{choice:?}");
    assert!(memlock.consequence.contains("servers of one comparison get unequal parts"), "{memlock:?}");
    assert!(memlock.cure.contains("memlock"), "{memlock:?}");
    assert!(output.status.success(), "the engine runs all the same");
}

#[test]
fn where_not_even_a_ring_is_granted_the_exit_status_says_so_and_the_rest_is_told() {
    let home = home();
    let output = doctor_under(&with_memlock_of(16), &["--json"], home.path());
    let seen = examination(&output);
    check(&seen);
    let refused = finding(&seen, "io_uring");
    if refused.state == State::Good {
        return println!("skipped: this kernel, or this user, has room for rings beyond the limit");
    }
    assert!(!output.status.success() && !seen.can_run && seen.choice.is_none(), "{seen:#?}");
    if refused.found.contains("ENOMEM") {
        assert!(refused.found.contains("16384 bytes") && refused.cure.contains("memlock"), "{refused:?}");
    }
    assert_eq!(finding(&seen, "O_DIRECT").name, "O_DIRECT", "the rest is told all the same");
}

#[test]
fn a_directory_that_cannot_be_written_to_is_a_reason_not_to_run() {
    let output = doctor_under("exec", &["--json"], Path::new("/proc/self"));
    let seen = examination(&output);
    check(&seen);
    assert!(!output.status.success() && !seen.can_run);
    assert_eq!(finding(&seen, "files").state, State::Missing);
}
