//! A guest's only files: its programs and the kernel modules it needs. A cpio archive in memory.
//!
//! The "newc" format (`Documentation/driver-api/early-userspace/buffer-format.rst`): a head of 110 characters, the name with
//! a zero byte, padding to 4, the bytes, padding to 4; last an entry named `TRAILER!!!`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
/// Where the guest finds its modules, in order.
pub(super) const MODULES_DIR: &str = "/modules";

/// What goes into an archive.
pub struct Contents<'a> {
    /// Names in the root directory and the static programs that stand there; `init` is run.
    pub programs: &'a [(&'a str, &'a Path)],
    /// Kernel modules, by name; those they need come along.
    pub modules: &'a [&'a str],
}

/// An archive under construction.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let links = 1;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            u32::try_from(content.len()).with_context(|| format!("{name} is too large for an archive"))?,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The kernel's image within an unpacked package, and its release.
///
/// # Errors
/// When there is none.
pub fn kernel_image(package: &Path) -> Result<(PathBuf, String)> {
    let boot = package.join("boot");
    let names = fs::read_dir(&boot).with_context(|| format!("looking into {}", boot.display()))?;
    for entry in names {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(release) = name.strip_prefix("vmlinuz-") {
            return Ok((path.clone(), release.to_owned()));
        }
    }
    bail!("{} holds no vmlinuz-*", boot.display())
}

/// The archive for a guest of that kernel.
///
/// # Errors
/// When a program is not static, or a module is not there or compressed.
pub fn archive(package: &Path, release: &str, contents: &Contents<'_>) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "tmp", "data", &MODULES_DIR[1..]] {
        archive.add(directory, DIRECTORY, b"")?;
    }
    for (name, program) in contents.programs {
        let bytes = fs::read(program).with_context(|| format!("reading {}", program.display()))?;
        ensure!(
            is_static(&bytes),
            "{} needs shared libraries, a guest has none: scripts/guest builds it static",
            program.display()
        );
        archive.add(name, PROGRAM, &bytes)?;
    }
    let root = package.join("lib/modules").join(release);
    let table = root.join("modules.dep");
    let table = fs::read_to_string(&table).with_context(|| {
        format!("reading {} (`depmod -b {} {release}` makes it)", table.display(), package.display())
    })?;
    for (number, module) in in_order(&table, contents.modules)?.iter().enumerate() {
        let path = root.join(module);
        ensure!(
            module.ends_with(".ko"),
            "{} is compressed: unpack modules with `xz -d`, then run depmod",
            path.display()
        );
        let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        archive.add(&format!("{}/{number:02}-{name}", &MODULES_DIR[1..]), PROGRAM, &content)?;
    }
    archive.add("TRAILER!!!", 0, b"")?;
    Ok(archive.bytes)
}

/// Whether a program runs without an interpreter: no header of kind 3 (`PT_INTERP`) in an ELF file of 64 bits.
fn is_static(elf: &[u8]) -> bool {
    let number = |at: usize, bytes: usize| {
        let field = elf.get(at..at + bytes)?;
        Some(field.iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte)) as usize)
    };
    let interpreter = || {
        let (first, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        Some((0..count).any(|header| number(first + header * size, 4) == Some(3)))
    };
    elf.starts_with(b"\x7fELF") && interpreter() == Some(false)
}

/// The files of `wanted` and of what they need, in the order to load them. A line of `modules.dep` is `a.ko: b.ko c.ko`,
/// what is needed first last.
fn in_order(table: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let mut needs: BTreeMap<String, (&str, &str)> = BTreeMap::new();
    for line in table.lines() {
        let (file, others) = line.split_once(':').with_context(|| format!("`{line}` in modules.dep"))?;
        let name = file.rsplit('/').next().unwrap_or(file).split('.').next().unwrap_or(file);
        needs.insert(name.replace('-', "_"), (file, others));
    }
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        // What is built in is in no table.
        let Some((file, others)) = needs.get(*name) else { continue };
        for file in others.split_ascii_whitespace().rev().chain([*file]) {
            if !order.iter().any(|known| known == file) {
                order.push(file.to_owned());
            }
        }
    }
    ensure!(!order.is_empty(), "modules.dep names none of {wanted:?}");
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_as_the_format_says() {
        let mut archive = Archive::default();
        archive.add("a", PROGRAM, b"12345").unwrap();
        assert_eq!(archive.bytes.len(), 112 + 8);
        assert_eq!(&archive.bytes[..6], b"070701");
        assert_eq!(&archive.bytes[6 + 8 * 6..6 + 8 * 7], b"00000005");
        assert_eq!(&archive.bytes[110..], b"a\x0012345\0\0\0");
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let table = "k/fs/ext4/ext4.ko: k/fs/jbd2/jbd2.ko k/lib/crc16.ko\nk/lib/crc16.ko:\nk/fs/jbd2/jbd2.ko:\n\
                     k/net/virtio_net.ko: k/net/net-failover.ko\n";
        let order = in_order(table, &["virtio_net", "built_in", "ext4"]).unwrap();
        assert_eq!(
            order,
            [
                "k/net/net-failover.ko",
                "k/net/virtio_net.ko",
                "k/lib/crc16.ko",
                "k/fs/jbd2/jbd2.ko",
                "k/fs/ext4/ext4.ko"
            ]
        );
        assert!(in_order(table, &["xfs"]).is_err());
    }

    #[test]
    fn programs_with_an_interpreter_are_told_apart() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        let has_interpreter = own.windows(12).any(|bytes| bytes == b"/ld-linux-x8");
        assert_eq!(is_static(&own), !has_interpreter);
        assert!(!is_static(b"#!/bin/sh"));
    }
}
