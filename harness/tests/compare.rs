//! What a user of the command may rely on: it runs, verifies, keeps the run, cleans up, and refuses nonsense.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use ringlog_harness::record::RunRecord;
use ringlog_harness::spec::Load;

/// One run at a time: each wants both cores and the whole disk, and its cells last a fifth of a second.
static ALONE: Mutex<()> = Mutex::new(());

fn harness(words: &str, out: &Path) -> Output {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringlog-harness"));
    command.arg("compare").args(words.split(' ')).arg("--out").arg(out);
    command.output().expect("the harness starts")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_small_run_verifies_every_record_and_keeps_what_it_measured() {
    let out = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let words = "--batch-bytes 16KiB --blocks 1 --seconds 0.2 --catch-up-bytes 8MiB --partitions 3 --producers 2 \
                 --consumers 2 --keys zipf:100 --seed 7";
    let ran = harness(&words.split_whitespace().collect::<Vec<_>>().join(" "), out.path());
    let said = text(&ran);
    let record = RunRecord::load(out.path()).unwrap_or_else(|error| panic!("{error:#}\n{said}"));
    assert!(record.complete, "{said}");
    let floors = record.cells.iter().filter(|cell| cell.cell.row.is_floor()).count();
    assert_eq!(record.cells.len() - floors, 11, "3 rows x (tail, catch-up, latency), and the first again");
    assert_eq!(floors, 4, "one for the tail, three to catch up: copy, sendfile, direct");
    assert!(said.contains("floor+memory") && said.contains("floor: receiving "), "{said}");
    for cell in &record.cells {
        assert!(cell.findings.are_clean() && cell.findings.records > 0, "{}: {:?}", cell.cell, cell.findings);
        assert!(cell.errors.is_empty(), "{}: {:?}", cell.cell, cell.errors);
        // What lasts for a time and not for a number of bytes can meet a disk that stands still for just that time.
        assert!(cell.payload_bytes() > 0 || cell.cell.load == Load::Tail, "{}: nothing measured", cell.cell);
        assert!(out.path().join(format!("{}.hlog", cell.cell.file_stem())).exists());
    }
    let measured = record.cells.iter().filter(|cell| cell.payload_bytes() > 0).count();
    assert!(2 * measured > record.cells.len(), "{measured} of {}: {said}", record.cells.len());
    assert!(said.contains("0 lost, 0 duplicate, 0 reordered, 0 corrupt"), "{said}");
    assert!(out.path().join("report.html").exists(), "{said}");
    assert!(!out.path().join("data").exists(), "the logs are removed: {said}");
    assert!(ran.status.success(), "{said}");
}

#[test]
fn what_producers_alone_wrote_is_read_back_and_verified() {
    let out = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let words = "--rows copy+tail,buffered+copy --loads produce --batch-bytes 64KiB --blocks 1 --seconds 1";
    let said = text(&harness(words, out.path()));
    let record = RunRecord::load(out.path()).unwrap_or_else(|error| panic!("{error:#}\n{said}"));
    for cell in &record.cells {
        assert!(
            cell.produced_bytes > 0 && cell.consumed_bytes == 0,
            "nobody reads while it is measured: {said}"
        );
        assert!(cell.findings.are_clean() && cell.errors.is_empty(), "{}: {:?}", cell.cell, cell.findings);
        // Of a floor nothing can be read back.
        let received = cell.findings.records;
        let (least, most) = if cell.cell.row.is_floor() { (0, 0) } else { (cell.produced_records, u64::MAX) };
        assert!((least..=most).contains(&received), "{}: {received} of {least}", cell.cell);
    }
    assert!(said.contains("0 lost, 0 duplicate, 0 reordered, 0 corrupt"), "{said}");
}

#[test]
fn many_read_one_range_and_some_catch_up_while_others_follow() {
    let out = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let words = "--rows copy+tail,buffered+sendfile --loads fan-out,mixed --batch-bytes 64KiB --blocks 1 \
                 --catch-up-bytes 8MiB --partitions 2";
    let said = text(&harness(&words.split_whitespace().collect::<Vec<_>>().join(" "), out.path()));
    let record = RunRecord::load(out.path()).unwrap_or_else(|error| panic!("{error:#}\n{said}"));
    assert!(record.complete, "{said}");
    for cell in &record.cells {
        let readers = if cell.cell.load == Load::FanOut { 8 } else { 1 };
        assert!(cell.consumed_bytes >= readers * 8_000_000, "{}: {} bytes", cell.cell, cell.consumed_bytes);
        assert!(cell.findings.are_clean() && cell.errors.is_empty(), "{}: {:?}", cell.cell, cell.findings);
        let follows = cell.cell.load == Load::Mixed;
        assert_eq!(follows, cell.produced_bytes > 0, "{}: {} bytes produced", cell.cell, cell.produced_bytes);
    }
    assert!(said.contains("0 lost, 0 duplicate, 0 reordered, 0 corrupt"), "{said}");
}

#[test]
fn lines_of_a_file_come_back_as_they_were() {
    let out = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let lines = out.path().join("lines");
    std::fs::write(&lines, "first\n\nthird, longer than the others\nlast").unwrap();
    let words = format!(
        "--rows copy+tail --loads tail --batch-bytes 4KiB --blocks 1 --seconds 0.2 --rate 1MB/s --payload {}",
        lines.display()
    );
    let ran = harness(&words, &out.path().join("run"));
    let said = text(&ran);
    let record = RunRecord::load(&out.path().join("run")).unwrap_or_else(|error| panic!("{error:#}\n{said}"));
    assert!(record.cells.iter().all(|cell| cell.findings.are_clean()), "{said}");
    assert!(said.contains("0 lost, 0 duplicate, 0 reordered, 0 corrupt"), "{said}");
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_starts() {
    let out = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let refused = harness("--rows copy+magic", &out.path().join("run"));
    assert!(!refused.status.success());
    assert!(text(&refused).contains("there is no egress strategy `magic`"), "{}", text(&refused));
    assert!(!out.path().join("run").exists());
}
