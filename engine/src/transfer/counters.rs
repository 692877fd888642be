//! What the transfers of one shard have in common: counts of what moved, by strategy, and of what fell back to another,
//! and what strategies share between connections.

use std::cell::Cell;

use super::egress::{Calibration, Egress, Masters, Reason};

/// Counts of one egress strategy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EgressCounters {
    /// Record bytes moved by this strategy's own means.
    pub bytes: u64,
    /// Of the bytes that were to go by this strategy, those that another carried.
    pub fallback_bytes: u64,
    /// Operations and calls that moved them.
    pub sends: u64,
    /// Of these, sends of a zero-copy strategy that were made by copying: of small pieces, and where as much was unreleased
    /// as may be or the kernel refused. What became of the others is the ring's to tell ([`crate::sys::ZeroCopyUse`]).
    pub plain_sends: u64,
    /// Times it had to bring pages into the cache first.
    pub cold_reads: u64,
    /// Times that a unit of a segment had been read for another fetch, and was shared with this one.
    pub shared_reads: u64,
}

/// Counts of one reason that `auto` had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChoiceCounters {
    /// Pieces.
    pub pieces: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What the transfers of one shard share.
#[derive(Default)]
pub struct Transfers {
    pub(super) masters: Masters,
    /// Bytes of memory for one use that transfers under way may hold.
    pub(super) fresh_bytes: Cell<u64>,
    egress: [Cell<EgressCounters>; Egress::ALL.len()],
    choices: [Cell<ChoiceCounters>; Reason::ALL.len()],
    /// What `auto` knows of this host.
    pub(crate) calibration: Cell<Calibration>,
    /// Bytes copied in user space on the way in.
    pub ingress_copied_bytes: Cell<u64>,
    /// Bytes of batches that were received into the memory they were written from, or into the file, but for the few that
    /// came with their heads.
    pub ingress_in_place_bytes: Cell<u64>,
    /// Bytes of shared last blocks, copied to be written: a block that is written again may not change under the device.
    pub last_block_copied_bytes: Cell<u64>,
    /// Bytes that did not go the way of the strategy: the host does not offer it, or a pipe does not carry them.
    pub ingress_fallback_bytes: Cell<u64>,
    /// Bytes accepted into the log.
    pub ingress_bytes: Cell<u64>,
}

impl Transfers {
    /// Drops what is kept of files that nobody has open any more.
    pub(crate) fn drop_closed(&self) {
        self.masters.drop_closed();
    }

    /// Pipes that hold a unit of a segment for whoever wants it, and bytes in them.
    #[must_use]
    pub fn masters(&self) -> (usize, u64) {
        self.masters.usage()
    }

    /// The counts of `egress`.
    #[must_use]
    pub fn egress(&self, egress: Egress) -> EgressCounters {
        self.egress[egress as usize].get()
    }

    /// What `auto` chose for `reason`.
    #[must_use]
    pub fn choices(&self, reason: Reason) -> ChoiceCounters {
        self.choices[reason as usize].get()
    }

    pub(super) fn note_choice(&self, reason: Reason, bytes: u64) {
        let cell = &self.choices[reason as usize];
        let ChoiceCounters { pieces, bytes: before } = cell.get();
        cell.set(ChoiceCounters { pieces: pieces + 1, bytes: before + bytes });
    }

    pub(super) fn note(&self, egress: Egress, change: impl FnOnce(&mut EgressCounters)) {
        let cell = &self.egress[egress as usize];
        let mut counters = cell.get();
        change(&mut counters);
        cell.set(counters);
    }

    pub(crate) fn note_ingress_in_place(&self, bytes: u64, copied: u64) {
        self.note_ingress(bytes, copied);
        self.ingress_in_place_bytes.set(self.ingress_in_place_bytes.get() + bytes - copied);
    }

    /// Of `bytes` all but the first `stated` went through a pipe.
    pub(crate) fn note_ingress_spliced(&self, bytes: u64, stated: u64) {
        self.note_ingress(bytes, 0);
        self.ingress_in_place_bytes.set(self.ingress_in_place_bytes.get() + bytes - stated);
    }

    pub(crate) fn note_last_block(&self, copied: u64) {
        self.last_block_copied_bytes.set(self.last_block_copied_bytes.get() + copied);
    }

    pub(crate) fn note_ingress_fallback(&self, bytes: u64) {
        self.ingress_fallback_bytes.set(self.ingress_fallback_bytes.get() + bytes);
    }

    pub(crate) fn note_ingress(&self, bytes: u64, copied: u64) {
        self.ingress_bytes.set(self.ingress_bytes.get() + bytes);
        self.ingress_copied_bytes.set(self.ingress_copied_bytes.get() + copied);
    }
}
