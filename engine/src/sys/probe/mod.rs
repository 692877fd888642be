//! Questions to the kernel about this host, each asked by doing the thing once: what a ring offers, what files of a
//! directory offer, what a network card does, whether breakpoints may be set.
//!
//! They are for a program that explains a host before any work, not for the engine's own start: that finds out by itself
//! and falls back. Nothing that they make outlives the call: files have no name, memory is unregistered, events are closed.

mod breakpoint;
mod card;
mod files;
mod ring;

pub use breakpoint::execution_breakpoint;
pub use card::{Card, cards};
pub use files::{DirectAlignment, FileOffer, files};
pub use ring::{Operation, RingOffer, ring};
