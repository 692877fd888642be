//! What the transfers of one shard moved, by strategy, and what they fell back to.

use std::cell::Cell;

use super::egress::Egress;

/// Counts of one egress strategy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EgressCounters {
    /// Record bytes moved by this strategy's own means.
    pub bytes: u64,
    /// Of the bytes that were to go by this strategy, those that another carried.
    pub fallback_bytes: u64,
    /// Operations and calls that moved them.
    pub sends: u64,
    /// Times it had to bring pages into the cache first.
    pub cold_reads: u64,
}

/// All counts of one shard's transfers.
#[derive(Default)]
pub struct TransferCounters {
    egress: [Cell<EgressCounters>; Egress::ALL.len()],
    /// Bytes copied in user space on the way in.
    pub ingress_copied_bytes: Cell<u64>,
    /// Bytes of batches that were received into the memory they were written from, but for the few that came with
    /// their heads.
    pub ingress_in_place_bytes: Cell<u64>,
    /// Bytes that did not go the way of the strategy, because the host does not offer it.
    pub ingress_fallback_bytes: Cell<u64>,
    /// Bytes accepted into the log.
    pub ingress_bytes: Cell<u64>,
}

impl TransferCounters {
    /// The counts of `egress`.
    #[must_use]
    pub fn egress(&self, egress: Egress) -> EgressCounters {
        self.egress[egress as usize].get()
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

    pub(crate) fn note_ingress_fallback(&self, bytes: u64) {
        self.ingress_fallback_bytes.set(self.ingress_fallback_bytes.get() + bytes);
    }

    pub(crate) fn note_ingress(&self, bytes: u64, copied: u64) {
        self.ingress_bytes.set(self.ingress_bytes.get() + bytes);
        self.ingress_copied_bytes.set(self.ingress_copied_bytes.get() + copied);
    }
}
