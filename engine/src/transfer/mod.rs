//! Moving bytes between log and socket: one file per strategy, one list of each kind.
//!
//! An *ingress* strategy takes accepted batches to the segment file; an *egress* strategy takes the pieces of a
//! fetch plan to a socket. Everything that depends on which strategies there are (the equivalence test, the
//! harness's rows, the table in the docs, command lines) is derived from [`Egress::ALL`] and [`Ingress::ALL`].
//! Nothing here decides an offset.

mod counters;
mod egress;
mod ingress;
mod join;
mod path;
mod plan;
mod readers;

pub use counters::{ChoiceCounters, EgressCounters, Transfers};
pub use egress::{Calibration, Egress, Reason, send};
pub use ingress::{Filled, Ingress, Need, Passage, Receives, Slot, Staged, WriteData, WriteUnit};
pub use join::{join, join_all};
pub use path::{BytePath, Kind, Place, Step};
pub use plan::{
    Chunk, CopyProfile, FreeSignal, Piece, PieceKinds, Protocol, Response, SegmentFile, SharedPiece,
};
