//! The one file that arms write to, prepared ahead as the floor prepares its own: by a thread beside, a step at a time.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FallocateFlags, fallocate};

use crate::floor::PREPARED_BYTES;

/// See the module's words.
pub(super) struct Sink {
    pub(super) file: File,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    at: u64,
    prepared: u64,
    /// The first thing that went wrong: nothing is written after it.
    failed: Option<String>,
}

impl Sink {
    /// Creates the file, prepares its first step, starts who prepares the others.
    ///
    /// # Errors
    /// Where the file system has no O_DIRECT, or no room.
    pub(super) fn open(path: &Path) -> Result<Arc<Sink>> {
        let mut options = OpenOptions::new();
        options.create(true).write(true).truncate(true).custom_flags(libc::O_DIRECT);
        let file = options.open(path).with_context(|| path.display().to_string())?;
        prepare(&file, 0).with_context(|| path.display().to_string())?;
        let state = State { at: 0, prepared: PREPARED_BYTES, failed: None };
        let sink = Arc::new(Sink { file, state: Mutex::new(state), changed: Condvar::new() });
        let preparing = sink.clone();
        std::thread::Builder::new().name("arm-prepare".into()).spawn(move || preparing.prepare_ahead())?;
        Ok(sink)
    }

    /// Where the next `bytes` go. It waits only when the preparing has fallen behind.
    ///
    /// # Errors
    /// What went wrong with an earlier write, or while room was prepared.
    pub(super) fn place(&self, bytes: u64) -> Result<u64> {
        let mut state = self.lock();
        let at = state.at;
        state.at += bytes;
        self.changed.notify_all();
        while state.failed.is_none() && state.prepared < at + bytes {
            state = self.wait(state);
        }
        match &state.failed {
            Some(why) => bail!("the arm's file: {why}"),
            None => Ok(at),
        }
    }

    /// Writes behind what is written.
    ///
    /// # Errors
    /// As [`Sink::place`], or this write's own.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<()> {
        let at = self.place(bytes.len() as u64)?;
        self.file.write_all_at(bytes, at).map_err(|error| self.fail(at, bytes.len(), &error))
    }

    /// Remembers that a write went wrong; gives the error for whoever made it.
    pub(super) fn fail(&self, at: u64, bytes: usize, error: &std::io::Error) -> anyhow::Error {
        let why = format!("writing {bytes} bytes at {at}: {error}");
        let error = anyhow::anyhow!("the arm's file: {why}");
        self.lock().failed.get_or_insert(why);
        self.changed.notify_all();
        error
    }

    /// # Errors
    /// What went wrong with an earlier write.
    pub(super) fn check(&self) -> Result<()> {
        match &self.lock().failed {
            Some(why) => bail!("the arm's file: {why}"),
            None => Ok(()),
        }
    }

    /// The next step is prepared when half of the last one is used.
    fn prepare_ahead(&self) {
        let mut state = self.lock();
        loop {
            while state.prepared.saturating_sub(state.at) > PREPARED_BYTES / 2 {
                state = self.wait(state);
            }
            let from = state.prepared;
            drop(state);
            let prepared = prepare(&self.file, from);
            state = self.lock();
            match prepared {
                Ok(()) => state.prepared = from + PREPARED_BYTES,
                Err(error) => {
                    state.failed.get_or_insert(format!("preparing from {from}: {error}"));
                    self.changed.notify_all();
                    return;
                }
            }
            self.changed.notify_all();
        }
    }

    /// Nobody panics between two changes of the state: a poisoned lock guards nothing that is half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// As the ring's helper does.
fn prepare(file: &File, from: u64) -> std::io::Result<()> {
    fallocate(file, FallocateFlags::empty(), from as i64, PREPARED_BYTES as i64)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arms::work::Unit;
    use crate::floor::UNIT_BYTES;

    #[test]
    fn more_than_a_step_is_written_in_order_and_the_first_failure_ends_it() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("file");
        let sink = Sink::open(&path).unwrap();
        let units = PREPARED_BYTES as usize / UNIT_BYTES + 3;
        let mut unit = Unit::new();
        for number in 0..units {
            unit.room().fill(number as u8 + 1);
            unit.took(UNIT_BYTES);
            sink.write(unit.bytes()).unwrap();
            unit.clear();
        }
        let written = std::fs::read(&path).unwrap();
        assert!(written.len() as u64 >= 2 * PREPARED_BYTES);
        for number in 0..units {
            let unit = &written[number * UNIT_BYTES..][..UNIT_BYTES];
            assert!(unit.iter().all(|&byte| byte == number as u8 + 1), "unit {number}");
        }
        sink.check().unwrap();
        sink.fail(7, 4096, &std::io::Error::other("gone"));
        let words = sink.write(&[]).unwrap_err().to_string();
        assert!(words.contains("4096 bytes at 7: gone") && sink.check().is_err(), "{words}");
    }
}
