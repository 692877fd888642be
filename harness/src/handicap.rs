//! More work than there is, put in by hand: to see whether a comparison notices.
//!
//! A thread on the server's core burns a share of what the process has used, every millisecond: as if each batch cost so
//! much more.

use std::hint::spin_loop;
use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

const STEP: Duration = Duration::from_millis(1);

/// Starts it; it inherits the caller's core and ends with the process.
pub fn begin(percent: f64) {
    let burn = move || {
        loop {
            thread::sleep(STEP);
            let own = used(ClockId::CLOCK_THREAD_CPUTIME_ID);
            let others = used(ClockId::CLOCK_PROCESS_CPUTIME_ID).saturating_sub(own);
            let owed = others.mul_f64(percent / 100.0);
            while used(ClockId::CLOCK_THREAD_CPUTIME_ID) < owed {
                spin_loop();
            }
        }
    };
    thread::Builder::new().name("handicap".into()).spawn(burn).expect("a thread more");
}

/// CPU time, of this thread or of all.
fn used(clock: ClockId) -> Duration {
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}
