//! QEMU with a guest in it, seen from the host: started, listened to, stopped.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Of what the console said, shown when a guest fails.
const LAST_WORDS_LINES: usize = 20;

/// What a guest is made of.
pub struct Setup<'a> {
    /// The kernel's image.
    pub kernel: &'a Path,
    /// The archive it starts from.
    pub archive: &'a Path,
    /// The words of its init: a subcommand of this program, and what follows.
    pub words: &'a str,
    /// Its memory.
    pub memory_mib: u32,
    /// Under KVM, or emulated.
    pub kvm: bool,
    /// Disks and cards, as QEMU wants them.
    pub devices: &'a [String],
}

/// A running guest; stopped with this.
pub struct Machine {
    process: Child,
    console: mpsc::Receiver<String>,
    last_words: Vec<String>,
}

impl Machine {
    /// Starts a guest.
    ///
    /// # Errors
    /// When there is no QEMU; what QEMU itself has to say is known later, from [`Machine::line`].
    pub fn start(setup: &Setup<'_>) -> Result<Machine> {
        let append = format!("console=ttyS0 quiet panic=-1 rdinit=/init -- {}", setup.words);
        let memory = setup.memory_mib.to_string();
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", if setup.kvm { "kvm" } else { "tcg" }, "-cpu", "max", "-machine", "q35"])
            .args(["-smp", "1", "-m", &memory])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
            .arg("-kernel")
            .arg(setup.kernel)
            .arg("-initrd")
            .arg(setup.archive)
            .args(["-append", &append])
            .args(setup.devices);
        let started = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut process = started.context("qemu-system-x86_64 (package qemu-system-x86)")?;
        let (tell, told) = mpsc::channel();
        let console = process.stdout.take().context("QEMU has no standard output")?;
        thread::spawn(move || {
            // The console ends with the machine; who listens may have gone before.
            let mut lines = BufReader::new(console).split(b'\n').map_while(|line| line.ok());
            lines.try_for_each(|line| tell.send(String::from_utf8_lossy(&line).trim().to_owned()))
        });
        Ok(Machine { process, console: told, last_words: Vec::new() })
    }

    /// The next line of the console that says something; none by `until`.
    ///
    /// # Errors
    /// When the machine ended: with what QEMU and the console said last.
    pub fn line(&mut self, until: Instant) -> Result<Option<String>> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.console.recv_timeout(left) {
                Ok(line) if line.is_empty() => {}
                Ok(line) => return Ok(Some(line)),
                Err(mpsc::RecvTimeoutError::Timeout) => return Ok(None),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    bail!("the guest ended early: {}{}", self.complaint(), self.told_last())
                }
            }
        }
    }

    /// Keeps a line that was not for us, for [`Machine::told_last`].
    pub fn remember(&mut self, line: String) {
        self.last_words.push(line);
    }

    /// The last of these, to be put behind an error.
    #[must_use]
    pub fn told_last(&self) -> String {
        let from = self.last_words.len().saturating_sub(LAST_WORDS_LINES);
        self.last_words[from..].iter().map(|line| format!("\n  console: {line}")).collect()
    }

    /// Whether QEMU is still there.
    ///
    /// # Errors
    /// What the system said.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_none())
    }

    /// What QEMU itself had to say, once it has ended.
    pub fn complaint(&mut self) -> String {
        let mut words = String::new();
        if let Some(stderr) = &mut self.process.stderr {
            // Without words there are none to show.
            let _ = stderr.read_to_string(&mut words);
        }
        words.trim().to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have turned itself off.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
