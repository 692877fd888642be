//! A small guest: a cloud kernel, our own static programs as its only files, and QEMU around it.
//!
//! ```text
//! image    the archive it starts from        host
//! machine  QEMU and the guest's console      host
//! init     what its first process does       guest
//! ```
//!
//! `scripts/guest` fetches the kernel and builds the programs. What a guest is for is its user's: the copy ledger, power
//! cuts.

mod image;
mod init;
mod machine;

pub use image::{Contents, archive, kernel_image};
pub use init::{as_init, bring_up, card, load_modules, mount_at, mount_system};
pub use machine::{Machine, Setup};
