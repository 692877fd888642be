//! What a user of the command may rely on: it runs, verifies, keeps the run, cleans up, and refuses nonsense.

use std::path::Path;
use std::process::{Command, Output};

use ringlog_harness::record::RunRecord;

fn harness(words: &str, out: &Path) -> Output {
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
    assert_eq!(record.cells.len(), 11, "3 rows x (tail, catch-up, latency), and the first again");
    for cell in &record.cells {
        assert!(cell.findings.are_clean() && cell.findings.records > 0, "{}: {:?}", cell.cell, cell.findings);
        assert!(cell.payload_bytes() > 0 && cell.errors.is_empty(), "{}: {:?}", cell.cell, cell.errors);
        assert!(out.path().join(format!("{}.hlog", cell.cell.file_stem())).exists());
    }
    assert!(said.contains("0 lost, 0 duplicate, 0 reordered, 0 corrupt"), "{said}");
    assert!(out.path().join("report.html").exists(), "{said}");
    assert!(!out.path().join("data").exists(), "the logs are removed: {said}");
    assert!(ran.status.success(), "{said}");
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
