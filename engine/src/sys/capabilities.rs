//! What this host grants, probed once before any work, in words for an operator.

use std::fmt;

use super::uring::Setup;

/// What the ring of a shard found.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// The kernel's release, as `uname -r` says.
    pub kernel_release: String,
    /// Ring set-up flags granted and refused.
    pub setup: Setup,
    /// Whether arena memory could be registered as fixed buffers.
    pub registered_buffers: bool,
    /// Whether the kernel knows sends that are told when their memory is free (`SEND_ZC`, Linux 6.0).
    pub zero_copy_sends: bool,
    /// The soft memlock limit, which unregistered users hit when they register buffers.
    pub memlock_bytes: u64,
}

impl Capabilities {
    pub(super) fn probe(setup: &Setup, registered_buffers: bool, zero_copy_sends: bool) -> Capabilities {
        let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
        let memlock = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK);
        Capabilities {
            kernel_release: release.unwrap_or_else(|_| "unknown".to_owned()),
            setup: setup.clone(),
            registered_buffers,
            zero_copy_sends,
            memlock_bytes: memlock.map_or(0, |(soft, _)| soft),
        }
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {}, io_uring with {}", self.kernel_release, self.setup.granted.join(" | "))?;
        if !self.setup.refused.is_empty() {
            write!(f, " (this kernel lacks {})", self.setup.refused.join(", "))?;
        }
        if !self.zero_copy_sends {
            write!(f, ", no zero-copy sends (they came with Linux 6.0; all sends copy)")?;
        }
        if self.registered_buffers {
            write!(f, ", registered buffers")
        } else {
            let mib = self.memlock_bytes >> 20;
            write!(
                f,
                ", buffers not registered (memlock limit {mib} MiB: raise `ulimit -l` to save work per operation)"
            )
        }
    }
}
