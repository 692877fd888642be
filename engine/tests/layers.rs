//! The layers of the house, as data, held against what each file imports; and what may not appear in some of them.

use std::fs;
use std::path::{Path, PathBuf};

/// Which of the engine's layers each layer may name. `sys` and `log` know no one but `types`.
const ALLOWED: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("sys", &["types"]),
    ("log", &["types"]),
    ("transfer", &["types", "sys", "log"]),
    ("shard", &["types", "sys", "log", "transfer"]),
    ("engine", &["types", "sys", "log", "transfer", "shard"]),
];

/// Waiting for another thread has no place where a core does its work.
const LOCKS: &[&str] = &["Mutex", "RwLock", "Condvar", "Barrier", "OnceLock", "LazyLock"];
const WITHOUT_LOCKS: &[&str] = &["log", "transfer", "shard"];

/// The world is reached through the ring: in the engine above `sys`, and in all of the broker's library.
const WORLD: &[&str] = &[
    "std::fs",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
    "fastrand",
    "libc::",
    "nix::",
];

fn sources(directory: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with("tests.rs") {
            continue;
        }
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            // Tests beside the code may use what they like; comments are prose.
            let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
            let lines = code.lines().filter(|l| !l.trim_start().starts_with("//"));
            found.push((path, lines.collect::<Vec<_>>().join("\n")));
        }
    }
    found
}

fn layer(name: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let file = root.join(format!("{name}.rs"));
    if file.exists() {
        return vec![(file.clone(), fs::read_to_string(file).unwrap())];
    }
    sources(&root.join(name))
}

#[test]
fn arrows_between_layers_point_one_way() {
    let mut wrong = Vec::new();
    for (name, allowed) in ALLOWED {
        for (path, code) in layer(name) {
            for (other, _) in ALLOWED {
                let named =
                    code.contains(&format!("crate::{other}::")) || code.contains(&format!("crate::{other};"));
                if named && other != name && !allowed.contains(other) {
                    wrong.push(format!("{} names {other}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_above_the_ring_touches_the_world_or_a_lock() {
    let mut wrong = Vec::new();
    let broker = Path::new(env!("CARGO_MANIFEST_DIR")).join("../broker/src");
    let broker = sources(&broker).into_iter().filter(|(path, _)| !path.ends_with("main.rs"));
    let files = ["log", "transfer", "shard"].into_iter().flat_map(layer).chain(broker);
    for (path, code) in files {
        wrong.extend(
            WORLD.iter().filter(|word| code.contains(**word)).map(|w| format!("{}: {w}", path.display())),
        );
    }
    for name in WITHOUT_LOCKS {
        for (path, code) in layer(name) {
            wrong.extend(
                LOCKS.iter().filter(|w| code.contains(**w)).map(|w| format!("{}: {w}", path.display())),
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_stands_in_sys_only() {
    let mut wrong = Vec::new();
    for (name, _) in ALLOWED.iter().filter(|(name, _)| *name != "sys") {
        for (path, code) in layer(name) {
            if code.contains("unsafe {") || code.contains("unsafe impl") || code.contains("unsafe fn") {
                wrong.push(path);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
