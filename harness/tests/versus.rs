//! What a user of `versus` may rely on: two brokers, one workload, every record verified, what each promised, the run kept.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ringlog::{Engine, EngineConfig};
use ringlog_broker::BrokerConfig;
use ringlog_harness::record::RunRecord;
use ringlog_harness::spec::Ack;

fn harness(words: &[&str]) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringlog-harness"));
    let output = command.args(words).output().expect("the harness starts");
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output, said)
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn workload(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("load.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Runs it and gives the record, which must be whole and clean.
fn versus(directory: &Path, load: &str, a: &str, b: &str) -> (RunRecord, String) {
    let file = workload(directory, load);
    let out = directory.join("run");
    let words = ["versus", file.to_str().unwrap(), "--a", a, "--b", b, "--out", out.to_str().unwrap()];
    let short = ["--blocks", "2", "--seconds", "0.5", "--warm-up-seconds", "0.2", "--seed", "11"];
    let (ran, said) = harness(&[&words[..], &short].concat());
    assert!(ran.status.success(), "{said}");
    let record = RunRecord::load(&out).unwrap_or_else(|error| panic!("{error:#}\n{said}"));
    assert!(record.complete && record.plan.seed == 11, "{said}");
    assert_eq!(record.cells.len(), 6, "a, b and a again in two blocks: {said}");
    let facts = record.versus.as_ref().unwrap();
    assert_eq!(facts.warm_up.len(), 2, "{said}");
    for cell in record.cells.iter().chain(&facts.warm_up) {
        assert!(cell.findings.are_clean() && cell.errors.is_empty(), "{}: {:?}", cell.cell, cell.findings);
        // Read back is also what was sent before and after the measured time, every record once.
        assert!(cell.produced_records > 0 && cell.findings.records >= cell.produced_records, "{}", cell.cell);
        assert!(cell.produce.response.count() > 0 && cell.server.resident_bytes > 0, "{}", cell.cell);
    }
    for cell in &record.cells {
        assert!(out.join(format!("{}.hlog", cell.cell.file_stem())).exists());
    }
    assert!(
        said.contains("seed 11") && said.contains("0 lost, 0 duplicate, 0 reordered, 0 corrupt"),
        "{said}"
    );
    let kept = std::fs::read_to_string(out.join("versus.txt")).unwrap();
    assert!(said.contains(kept.trim()) && !out.join("data").exists(), "{said}");
    (record, said)
}

#[test]
fn a_child_against_a_child_verifies_every_record_and_keeps_the_run() {
    let directory = directory();
    let load = "partitions = 3\nbatch_bytes = \"8KiB\"\nconnections = 2\nwindow = 3\n";
    let (record, said) = versus(directory.path(), load, "child", "child=buffered+copy,ack=written");
    let facts = record.versus.unwrap();
    assert_eq!(facts.targets[0].name, "child=copy+tail");
    assert_eq!(facts.targets[0].promise.ack, Some(Ack::Durable), "the workload's: {said}");
    assert_eq!(facts.targets[1].promise.ack, Some(Ack::Written), "its own: {said}");
    assert!(said.contains("a and b do not promise the same"), "{said}");
    assert!(said.contains("asks for ack durable; b gives written"), "{said}");
    assert!(facts.targets.iter().all(|target| target.process.is_ok()), "{said}");
}

#[test]
fn more_partitions_than_are_read_at_once_come_back_at_a_rate_through_either_way_to_commit() {
    let directory = directory();
    let load = "partitions = 70\nbatch_bytes = \"4KiB\"\nrate = \"4MB/s\"\narrivals = \"uniform\"\n";
    let (a, b) = ("child=commit=files", "child=commit=journal");
    let (record, said) = versus(directory.path(), load, a, b);
    assert!(!said.contains("do not promise the same"), "{said}");
    for cell in &record.cells {
        // Half a second at 4 MB/s, and what came before: late requests are counted, not left out.
        let scheduled = cell.lateness.sent + cell.lateness.never_sent;
        assert!((260..880).contains(&scheduled), "{}: {:?}", cell.cell, cell.lateness);
    }
}

#[test]
fn a_broker_by_its_address_is_measured_by_the_process_that_listens_there() {
    let directory = directory();
    let engine = Engine::open(EngineConfig::new(directory.path().join("engine"))).unwrap();
    let here = SocketAddr::from(([127, 0, 0, 1], 0));
    let serving = ringlog_broker::start(&engine, BrokerConfig::new(here)).unwrap();
    let wire = format!("wire={}", serving.address());
    let (record, said) = versus(directory.path(), "window = 2\n", &wire, "child");
    let facts = record.versus.unwrap();
    assert_eq!(facts.targets[0].name, wire);
    assert_eq!(facts.targets[0].process.as_ref().unwrap().id, std::process::id() as i32, "{said}");
    assert_eq!(facts.targets[0].promise.ack, Some(Ack::Durable));
    let topics = ringlog::block_on(engine.on_shard(|shard| async move { shard.topics().len() })).unwrap();
    assert_eq!(topics, 0, "every topic of the run is gone");

    // The same broker takes warming; a child, which lives for one run, does not.
    let (ran, said) = harness(&["warm", &wire, "--seconds", "1"]);
    assert!(ran.status.success() && said.contains("GB in"), "{said}");
    engine.close().unwrap();
    let (ran, said) = harness(&["warm", "child"]);
    assert!(!ran.status.success() && said.contains("a child lives for one run only"), "{said}");
}

#[test]
fn what_cannot_be_run_is_refused_by_name() {
    let directory = directory();
    let out = directory.path().join("run");
    let file = workload(directory.path(), "partitons = 3\n");
    let words =
        ["versus", file.to_str().unwrap(), "--a", "child", "--b", "child", "--out", out.to_str().unwrap()];
    let (ran, said) = harness(&words);
    assert!(!ran.status.success() && said.contains("unknown field `partitons`"), "{said}");
    assert!(said.contains("load.toml") && !out.exists(), "{said}");
    workload(directory.path(), "");
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (ran, said) = harness(&[&words[..3], &[&format!("wire={free}")], &words[4..]].concat());
    assert!(!ran.status.success() && said.contains(&format!("connecting to the broker at {free}")), "{said}");
    let (ran, said) = harness(&[&words[..3], &["kafka"], &words[4..]].concat());
    assert!(!ran.status.success() && said.contains("`kafka` is no target"), "{said}");
}
