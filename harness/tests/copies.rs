//! The copy ledger as a user runs it, over the loopback of this machine.

use std::process::{Command, Output};

use ringlog::{Egress, Ingress};
use serde_json::Value;

fn copies(more: &[&str]) -> (Output, Vec<Value>) {
    let output = Command::new(env!("CARGO_BIN_EXE_ringlog-harness"))
        .args(["copies", "--json", "--mib", "1", "--data-dir", env!("CARGO_TARGET_TMPDIR")])
        .args(more)
        .output()
        .unwrap();
    let lines = String::from_utf8(output.stdout.clone()).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output, lines)
}

#[test]
fn every_strategy_has_a_row_or_lacks_something_and_accounts_agree() {
    let (output, lines) = copies(&[]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}\n{errors}\n{lines:#?}", output.status);
    assert_eq!(lines[0]["line"], "ground", "which accounts there are is said first");
    let named = |direction: &str, name: &str| {
        lines.iter().any(|line| line["direction"] == direction && line["strategy"] == name)
    };
    for egress in Egress::ALL.iter().filter(|egress| !egress.chooses()) {
        assert!(named("egress", egress.name()), "{egress}");
    }
    for ingress in Ingress::ALL {
        assert!(named("ingress", ingress.name()), "{ingress}");
    }
    assert!(named("path", "in_place + tail"));
    let refused = !lines[0]["refused"].is_null();
    for line in lines.iter().filter(|line| line["line"] == "row") {
        assert!(line["payload_bytes"].as_u64() >= Some(1 << 19), "{line}");
        assert_eq!(
            line["counted"].is_null(),
            refused,
            "the kernel's account is there, or said to be refused: {line}"
        );
    }
}

#[test]
fn a_copy_that_nobody_declared_is_found() {
    let (output, lines) = copies(&["--only", "sendfile", "--extra-copy", "sendfile"]);
    assert_eq!(output.status.code(), Some(3), "{lines:#?}");
    let row = lines.iter().find(|line| line["line"] == "row").unwrap();
    let found = row["disagreements"].to_string();
    assert!(found.contains("overwriting the source changed nothing"), "{found}");
    let (output, _) = copies(&["--only", "sendfile"]);
    assert_eq!(output.status.code(), Some(0), "without it accounts agree");
}

#[test]
fn what_is_no_strategy_is_said_to_be_none() {
    let (output, _) = copies(&["--only", "teleport"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("teleport"));
}
