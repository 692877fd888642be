//! The guide to strategies is current, and complete.

use std::fs;
use std::path::Path;

use ringlog::{Egress, Ingress};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn the_guide_is_current() {
    let path = root().join("harness/STRATEGIES.md");
    let kept = fs::read_to_string(&path).unwrap();
    let current = ringlog_harness::guide::current(&kept, root()).unwrap();
    if kept != current {
        fs::write(&path, current).unwrap();
        panic!("harness/STRATEGIES.md was not current, and is now: look at the difference and keep it");
    }
}

#[test]
fn every_strategy_says_when_it_is_right_and_what_the_kernel_does() {
    let ways_in = Ingress::ALL.iter().map(|ingress| ("ingress", ingress.name()));
    let ways_out = Egress::ALL.iter().map(|egress| ("egress", egress.name()));
    for (direction, name) in ways_in.chain(ways_out) {
        let file = root().join(format!("engine/src/transfer/{direction}/{name}.rs"));
        let text = fs::read_to_string(&file).unwrap();
        let head: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
        let head = head.join("\n").to_lowercase();
        for words in ["the path of a byte:", "right ", "in the kernel:"] {
            assert!(head.contains(words), "{} does not say \"{words}\"", file.display());
        }
    }
}
