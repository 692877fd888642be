//! The simulated world: a second driver of the ring, made from one seed.
//!
//! Time is virtual, nothing runs in parallel, and every choice comes from one seeded generator, so the same seed gives
//! the same run. Operations complete late and in any order, the disk forgets what was not synced, and everything that
//! happens to it is recorded, so that one run can be cut at thousands of places and each cut be recovered from.

mod disk;
mod driver;
mod image;
mod loans;
mod network;
mod pipes;
#[cfg(test)]
mod tests;
mod world;

pub use disk::{CutCursor, CutKind, Recording};
pub use image::DiskImage;
pub use world::{Faults, World};

pub(crate) use driver::{SimDriver, SimFile, SimLock};
pub(crate) use network::{SimListener, SimSocket};
