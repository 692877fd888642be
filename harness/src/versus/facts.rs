//! What a run record holds of a run of two targets beside its cells.

use serde::{Deserialize, Serialize};

use super::target::Facts;
use super::workload::Workload;
use crate::record::CellRecord;

/// Workload, targets, and the cells that were not measured.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct VersusFacts {
    /// The workload file's name.
    pub file: String,
    /// What it says.
    pub workload: Workload,
    /// `a` and `b`.
    pub targets: [Facts; 2],
    /// The cell before all others of each.
    pub warm_up: Vec<CellRecord>,
}
