//! One simulated world: its clock, its queue of what is to happen, its rings and its faults.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::path::Path;
use std::rc::{Rc, Weak};

use super::disk::{Disk, DiskEvent, Recording};
use super::driver::{Effect, SimDriver};
use super::image::DiskImage;
use super::network::{Network, NetworkEvent};
use crate::sys::arena::{Arena, LeaseMut};
use crate::sys::clock::Moment;
use crate::sys::op::{Completion, Reply, Token};
use crate::sys::ring::{Driver, Ring, RingCounters};
use crate::sys::task::Bell;

/// Timers that come up one after the other while nothing else is to happen: beyond that somebody waits for ever.
const IDLE_HOPS_MAX: u64 = 1_000_000;

/// A deterministic world made from one seed. Clones share it.
#[derive(Clone)]
pub struct World(pub(super) Rc<RefCell<State>>);

pub(super) struct State {
    /// The cell this lies in, for the handles that it makes.
    pub world: Weak<RefCell<State>>,
    pub seed: u64,
    pub random: fastrand::Rng,
    pub now: u64,
    /// What is to happen, by time and then by the order of asking.
    due: BTreeMap<(u64, u64), Due>,
    due_next: u64,
    /// How often in a row only a timer came up.
    idle_hops: u64,
    pub rings: Vec<RingState>,
    pub disk: Disk,
    pub network: Network,
    pub faults: FaultPlan,
    pub locks: super::driver::Locks,
    /// Where the mutant that lets go of memory too early puts what callers get back.
    pub spare: Arena,
}

#[derive(Default)]
pub(super) struct RingState {
    pub gone: bool,
    pub done: VecDeque<Completion>,
    pub counters: RingCounters,
    /// Operations whose effect has not happened.
    pub under_way: BTreeMap<u64, Effect>,
    /// Buffers that wait for bytes.
    pub provided: Vec<LeaseMut>,
}

/// Something that happens at its time.
pub(super) enum Due {
    /// The operation reads or writes memory and the disk.
    Effect(Address),
    /// The operation completes, with the disk events that belong to that.
    Complete(Address, Box<Outcome>),
    Network(NetworkEvent),
}

/// An operation: its ring and its token there.
pub(super) type Address = (usize, Token);

pub(super) struct Outcome {
    pub result: io::Result<u32>,
    pub reply: Reply,
    pub records: Vec<DiskEvent>,
}

impl Outcome {
    pub fn of(result: io::Result<u32>) -> Outcome {
        Outcome { result, reply: Reply::None, records: Vec::new() }
    }

    pub fn failed(code: i32) -> Outcome {
        Outcome::of(Err(io::Error::from_raw_os_error(code)))
    }
}

struct NoBell;

impl Bell for NoBell {
    fn ring(&self) {}
}

impl World {
    /// A world with an empty disk.
    #[must_use]
    pub fn new(seed: u64) -> World {
        World::boot(seed, DiskImage::new())
    }

    /// A world with the disk that another one left; all of it is durable.
    #[must_use]
    pub fn boot(seed: u64, image: DiskImage) -> World {
        World(Rc::new_cyclic(|world| {
            RefCell::new(State {
                world: world.clone(),
                seed,
                random: fastrand::Rng::with_seed(seed),
                now: 1_000_000_000,
                due: BTreeMap::new(),
                due_next: 0,
                idle_hops: 0,
                rings: Vec::new(),
                disk: Disk::of_image(&image),
                network: Network::default(),
                faults: FaultPlan::default(),
                locks: super::driver::Locks::default(),
                spare: Arena::new(1 << 30),
            })
        }))
    }

    /// The seed it was made from.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.0.borrow().seed
    }

    /// One more ring in this world.
    #[must_use]
    pub fn ring(&self, arena_bytes_max: u64) -> Ring {
        let number = {
            let rings = &mut self.0.borrow_mut().rings;
            rings.push(RingState::default());
            rings.len() - 1
        };
        Ring::new(Driver::Sim(SimDriver::new(self.clone(), number)), Box::new(NoBell), arena_bytes_max)
    }

    /// Runs the tasks of all `rings`, with `main` as one more on the first, until `main` is done.
    ///
    /// # Panics
    /// When nothing is left to happen and `main` still waits; the message has the seed.
    pub fn run<T: 'static>(&self, rings: &[&Ring], main: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let slot = result.clone();
        rings[0].spawn(async move {
            let value = main.await;
            *slot.borrow_mut() = Some(value);
        });
        loop {
            for ring in rings {
                ring.run_tasks();
                if let Some(value) = result.borrow_mut().take() {
                    return value;
                }
                ring.visit(false);
            }
            let idle = rings.iter().all(|ring| {
                let idle = ring.executor().prepare_to_sleep();
                ring.executor().woke();
                idle
            });
            let mut state = self.0.borrow_mut();
            if idle && state.rings.iter().all(|ring| ring.gone || ring.done.is_empty()) {
                let deadline = rings.iter().filter_map(|ring| ring.next_deadline()).min();
                state.advance(deadline);
            }
        }
    }

    /// How much has happened to the disk: where a cut belongs that shall come after everything so far.
    #[must_use]
    pub fn disk_events(&self) -> usize {
        self.0.borrow().disk.events()
    }

    /// Everything that happened to the disk so far.
    #[must_use]
    pub fn recording(&self) -> Recording {
        self.0.borrow().disk.recording()
    }

    /// What shall go wrong.
    #[must_use]
    pub fn faults(&self) -> Faults {
        Faults(self.clone())
    }
}

impl State {
    /// How long something takes: mostly little, sometimes long.
    pub fn latency(&mut self) -> u64 {
        match self.random.u8(..16) {
            0 => self.random.u64(500_000..10_000_000),
            _ => self.random.u64(2_000..500_000),
        }
    }

    pub fn after(&mut self, nanos: u64, due: Due) {
        self.at(self.now + nanos, due);
    }

    pub fn at(&mut self, time: u64, due: Due) {
        self.due_next += 1;
        self.due.insert((time, self.due_next), due);
    }

    /// Completes an operation after a while.
    pub fn complete_later(&mut self, address: Address, outcome: Outcome) {
        let latency = self.latency();
        self.after(latency, Due::Complete(address, Box::new(outcome)));
    }

    /// Goes to the next thing that is to happen, or to `deadline` if that is earlier.
    pub fn advance(&mut self, deadline: Option<Moment>) {
        let next = self.due.first_key_value().map(|(&(time, _), _)| time);
        let deadline = deadline.map(|deadline| deadline.0);
        self.idle_hops = if next.is_some() { 0 } else { self.idle_hops + 1 };
        match [next, deadline].into_iter().flatten().min() {
            Some(time) if self.idle_hops < IDLE_HOPS_MAX => self.now = self.now.max(time),
            _ => {
                panic!("nothing is left to happen in the world of seed {}, and somebody waits", self.seed)
            }
        }
        self.happen();
    }

    /// Lets happen what is due.
    pub fn happen(&mut self) {
        while let Some(entry) = self.due.first_entry() {
            if entry.key().0 > self.now {
                return;
            }
            match entry.remove() {
                Due::Effect(address) => {
                    let ring = &mut self.rings[address.0];
                    if let Some(effect) = ring.under_way.remove(&address.1.to_bits()) {
                        self.effect(address, effect);
                    }
                }
                Due::Complete(address, outcome) => {
                    let Outcome { result, reply, records } = *outcome;
                    for event in records {
                        self.disk.record(event);
                    }
                    self.complete(address, result, reply);
                }
                Due::Network(event) => self.network_event(event),
            }
        }
    }

    pub fn complete(&mut self, (ring, token): Address, result: io::Result<u32>, reply: Reply) {
        let ring = &mut self.rings[ring];
        if !ring.gone {
            ring.done.push_back(Completion { token, result, reply });
        }
    }
}

/// What shall go wrong in a world.
#[derive(Default)]
pub(super) struct FaultPlan {
    writes: Vec<(String, u32)>,
    syncs: Vec<(String, u32)>,
    reads: Vec<(String, u32)>,
    removals: Vec<(String, u32)>,
    full_writes: Vec<(String, u32)>,
    pub direct_is_refused: bool,
    pub short_writes: f64,
    pub ignore_syncs: bool,
    pub disk_full: bool,
    pub descriptors_are_out: bool,
    pub pipe_bytes_max: Option<usize>,
    pub flushes_are_lost: bool,
    pub reuse_memory_in_flight: bool,
    pub zero_copy_is_unknown: bool,
    pub release_early: bool,
}

impl FaultPlan {
    pub fn fails_write(&mut self, path: &Path) -> bool {
        strikes(&mut self.writes, path)
    }

    pub fn fails_sync(&mut self, path: &Path) -> bool {
        strikes(&mut self.syncs, path)
    }

    pub fn finds_no_room(&mut self, path: &Path) -> bool {
        strikes(&mut self.full_writes, path)
    }

    pub fn fails_removal(&mut self, path: &Path) -> bool {
        strikes(&mut self.removals, path)
    }

    pub fn fails_read(&mut self, path: &Path) -> bool {
        strikes(&mut self.reads, path)
    }
}

fn strikes(plan: &mut Vec<(String, u32)>, path: &Path) -> bool {
    let path = path.to_string_lossy();
    let Some(index) = plan.iter().position(|(pattern, _)| path.contains(pattern.as_str())) else {
        return false;
    };
    plan[index].1 -= 1;
    if plan[index].1 == 0 {
        plan.remove(index);
    }
    true
}

/// Makes things go wrong in its world, from now on.
#[derive(Clone)]
pub struct Faults(World);

impl Faults {
    /// The next `count` writes to files whose path contains `pattern` fail with an I/O error and write nothing.
    pub fn fail_writes(&self, pattern: &str, count: u32) {
        self.plan(|plan| note(&mut plan.writes, pattern, count));
    }

    /// The next `count` syncs of files whose path contains `pattern` fail with an I/O error. What they covered is
    /// never made durable by a later one, as with the kernel.
    pub fn fail_syncs(&self, pattern: &str, count: u32) {
        self.plan(|plan| note(&mut plan.syncs, pattern, count));
    }

    /// The next `count` reads of files whose path contains `pattern` fail with an I/O error.
    pub fn fail_reads(&self, pattern: &str, count: u32) {
        self.plan(|plan| note(&mut plan.reads, pattern, count));
    }

    /// The next `count` removals of files and directories whose path contains `pattern` fail with an I/O error.
    pub fn fail_removals(&self, pattern: &str, count: u32) {
        self.plan(|plan| note(&mut plan.removals, pattern, count));
    }

    /// The next `count` writes to files whose path contains `pattern` find the disk full, though room was prepared.
    pub fn deny_writes(&self, pattern: &str, count: u32) {
        self.plan(|plan| note(&mut plan.full_writes, pattern, count));
    }

    /// The file system knows no way past the page cache, nor one of leaving it at once.
    pub fn refuse_direct(&self, refuse: bool) {
        self.plan(|plan| plan.direct_is_refused = refuse);
    }

    /// Each write is cut short with this probability, at a place that its file allows.
    pub fn short_writes(&self, probability: f64) {
        self.plan(|plan| plan.short_writes = probability);
    }

    /// No file grows any more: preparing room, making files and replacing them fail for want of space.
    pub fn fill_disk(&self, full: bool) {
        self.plan(|plan| plan.disk_full = full);
    }

    /// Nothing can be opened any more: the process has all the descriptors that it may have.
    pub fn exhaust_descriptors(&self, out: bool) {
        self.plan(|plan| plan.descriptors_are_out = out);
    }

    /// New pipes hold no more than this, as those of a user who has many.
    pub fn shrink_pipes(&self, bytes_max: Option<usize>) {
        self.plan(|plan| plan.pipe_bytes_max = bytes_max);
    }

    /// The file system is known to lose what it says it has flushed.
    pub fn lose_flushes(&self, lose: bool) {
        self.plan(|plan| plan.flushes_are_lost = lose);
    }

    /// Syncs of files succeed and do nothing.
    pub fn ignore_syncs(&self, ignore: bool) {
        self.plan(|plan| plan.ignore_syncs = ignore);
    }

    /// A broken driver, to prove that tests would notice: it lets go of a write's memory at submission and still
    /// takes the bytes from there later.
    pub fn reuse_memory_in_flight(&self, reuse: bool) {
        self.plan(|plan| plan.reuse_memory_in_flight = reuse);
    }

    /// The kernel knows no zero-copy sends.
    pub fn refuse_zero_copy(&self, refuse: bool) {
        self.plan(|plan| plan.zero_copy_is_unknown = refuse);
    }

    /// A broken driver, to prove that tests would notice: zero-copy sends let go of their memory when they complete, and
    /// the network still takes the bytes from there later.
    pub fn release_early(&self, early: bool) {
        self.plan(|plan| plan.release_early = early);
    }

    fn plan(&self, change: impl FnOnce(&mut FaultPlan)) {
        change(&mut self.0.0.borrow_mut().faults);
    }
}

fn note(plan: &mut Vec<(String, u32)>, pattern: &str, count: u32) {
    if count > 0 {
        plan.push((pattern.to_owned(), count));
    }
}
