//! The arena: one shard's memory for moving bytes, registered with the kernel once, lent out as leases.
//!
//! Memory is mapped in chunks, touched before use, registered as fixed buffers where the memlock limit allows,
//! and carved into blocks of a few size classes. A [`LeaseMut`] is the only right to write a range of a block;
//! [`LeaseMut::freeze`] turns it into a [`Lease`], which may be cloned, sliced and released from any thread but
//! never written again. That is the whole argument why the kernel may read or write such memory while the rest
//! of the program runs: whoever could interfere does not hold the right type.
//!
//! Relies on nothing but `mmap`; leaves the choice of when to grow to the shard.

use std::cell::Cell;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam::queue::{ArrayQueue, SegQueue};

use super::write_map::WriteMap;

/// Sizes of the blocks that leases are cut from, smallest first.
pub const BLOCK_CLASSES: [usize; 8] =
    [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20];
/// The largest lease.
pub const LEASE_BYTES_MAX: usize = BLOCK_CLASSES[BLOCK_CLASSES.len() - 1];
/// Chunks are aligned so that the kernel can back them with huge pages.
const CHUNK_ALIGN: usize = 2 << 20;
/// Bytes mapped at once for a class of small blocks.
const CHUNK_BYTES_MIN: usize = 2 << 20;
/// Of the budget, one part in so many may be lent to sends that have no copy of their own. What is lent comes back at the
/// pace of peers, whatever the shard needs; three quarters stay its own.
const LENT_PART: u64 = 4;

/// One shard's memory. Leases outlive it safely; only its owner can take new ones.
pub struct Arena {
    shared: Arc<Shared>,
    chunk_count: Cell<usize>,
}

/// What leases need to find their way home from any thread.
struct Shared {
    /// Free blocks by class, bounded by what the budget could ever hold.
    free: [ArrayQueue<BlockRef>; BLOCK_CLASSES.len()],
    chunks: SegQueue<Chunk>,
    /// Blocks that were cut out of larger ones; the memory is the chunks'.
    carved: SegQueue<Carved>,
    mapped_blocks: [AtomicU64; BLOCK_CLASSES.len()],
    mapped_bytes: AtomicU64,
    leased_bytes: AtomicU64,
    registered_bytes: AtomicU64,
    /// Bytes of blocks that are lent at least once.
    lent_bytes: AtomicU64,
    bytes_max: u64,
}

/// One mapping, cut into equal blocks. Unmapped when the arena and every lease on it are gone.
pub(crate) struct Chunk {
    base: NonNull<u8>,
    bytes: usize,
    blocks: Box<[Block]>,
}

/// Headers of blocks within a block. They stay where they are: free lists and leases point at them.
struct Carved(Box<[Block]>);

// SAFETY: as for `Chunk`: addresses of plain memory and atomics, not tied to a thread.
unsafe impl Send for Carved {}
// SAFETY: as above; the bytes are reached through leases only.
unsafe impl Sync for Carved {}

impl Drop for Carved {
    fn drop(&mut self) {
        for block in &self.0 {
            let leases = block.leases.load(Ordering::Acquire);
            assert_eq!(leases, 0, "arena memory was given up under {leases} leases");
        }
    }
}

struct Block {
    base: NonNull<u8>,
    class: u8,
    /// Index of the registered buffer that covers this block; `u32::MAX` when it is not registered.
    fixed: AtomicU32,
    /// Leases on this block. The block is in the free list exactly while this is zero.
    leases: AtomicU32,
    /// Of these, leases that are lent.
    lent: AtomicU32,
    home: Home,
}

/// Where a block goes when its last lease is gone.
#[derive(Clone, Copy)]
enum Home {
    /// Back to its arena, whose memory is kept mapped while the block is leased by a strong count of this `Arc`.
    Arena(*const Shared),
    /// It is the window's only block: unmapped with it.
    Window(*const Window),
}

#[derive(Clone, Copy)]
struct BlockRef(NonNull<Block>);

// SAFETY: a `BlockRef` points into a `Chunk` held by `Shared::chunks` for as long as `Shared` lives, and every
// field that is shared between threads behind it is atomic.
unsafe impl Send for BlockRef {}
// SAFETY: as above.
unsafe impl Sync for BlockRef {}
// SAFETY: a chunk is plain memory plus atomics; it is not tied to the thread that mapped it.
unsafe impl Send for Chunk {}
// SAFETY: as above; its bytes are reached through leases only.
unsafe impl Sync for Chunk {}

/// The only right to read and write one range of arena memory.
pub struct LeaseMut {
    block: BlockRef,
    start: u32,
    end: u32,
}

/// A right to read one range of arena memory that nobody can write any more. Cheap to clone and slice; may be
/// sent to and released on any thread.
pub struct Lease {
    block: BlockRef,
    start: u32,
    end: u32,
}

/// A lease that the kernel reads from until it says otherwise: its block counts against what may be lent.
pub(crate) struct LentLease(Lease);

/// What pages memory is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageKind {
    /// Huge ones where the kernel has them to give, small ones else.
    #[default]
    Transparent,
    /// Small ones.
    Small,
    /// Huge ones that were reserved beforehand (`vm.nr_hugepages`), or none at all.
    Reserved,
}

/// How much memory an arena holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaUse {
    /// Bytes mapped and touched.
    pub mapped_bytes: u64,
    /// Bytes of blocks with at least one lease.
    pub leased_bytes: u64,
    /// Bytes registered with the ring as fixed buffers.
    pub registered_bytes: u64,
    /// Bytes of blocks that zero-copy sends keep from being used again; at most a quarter of the budget.
    pub lent_bytes: u64,
    /// The budget.
    pub bytes_max: u64,
}

impl Arena {
    /// An empty arena that may grow to `bytes_max`.
    #[must_use]
    pub fn new(bytes_max: u64) -> Arena {
        let shared = Shared {
            free: BLOCK_CLASSES.map(|block_bytes| ArrayQueue::new(blocks_max(bytes_max, block_bytes))),
            chunks: SegQueue::new(),
            carved: SegQueue::new(),
            mapped_blocks: Default::default(),
            mapped_bytes: AtomicU64::new(0),
            leased_bytes: AtomicU64::new(0),
            registered_bytes: AtomicU64::new(0),
            lent_bytes: AtomicU64::new(0),
            bytes_max,
        };
        Arena { shared: Arc::new(shared), chunk_count: Cell::new(0) }
    }

    /// Takes a lease of at least `bytes` (rounded up to a block), or `None` when no free block of that class is
    /// mapped: then the owner grows the arena, or waits.
    #[must_use]
    pub fn try_lease(&self, bytes: usize) -> Option<LeaseMut> {
        let class = class_of(bytes)?;
        let block = self.shared.free[class].pop()?;
        // SAFETY: `block` came out of this arena's free list, so its chunk is alive.
        let header = unsafe { block.0.as_ref() };
        let before = header.leases.swap(1, Ordering::Relaxed);
        assert_eq!(before, 0, "a block in the free list had {before} leases");
        // SAFETY: the home of this arena's blocks is the `Arc` behind `self.shared`, which is alive here; the count taken
        // now is given back by the last lease on this block.
        unsafe { Arc::increment_strong_count(Arc::as_ptr(&self.shared)) };
        let block_bytes = BLOCK_CLASSES[class];
        self.shared.leased_bytes.fetch_add(block_bytes as u64, Ordering::Relaxed);
        Some(LeaseMut { block, start: 0, end: block_bytes as u32 })
    }

    /// Bytes that a chunk for leases of `bytes` would map, or `None` when the budget has no room for it.
    #[must_use]
    pub fn growth_for(&self, bytes: usize) -> Option<usize> {
        let class = class_of(bytes)?;
        let chunk_bytes = chunk_bytes(class) as u64;
        let mapped_blocks = self.shared.mapped_blocks[class].load(Ordering::Relaxed);
        if mapped_blocks as usize + chunk_bytes as usize / BLOCK_CLASSES[class]
            > self.shared.free[class].capacity()
        {
            return None;
        }
        let room = self.shared.bytes_max.saturating_sub(self.shared.mapped_bytes.load(Ordering::Relaxed));
        (chunk_bytes <= room).then_some(chunk_bytes as usize)
    }

    /// Free blocks of the class that serves `bytes`.
    #[must_use]
    pub fn free_blocks(&self, bytes: usize) -> usize {
        class_of(bytes).map_or(0, |class| self.shared.free[class].len())
    }

    /// Adds a touched chunk for leases of `bytes`, registered as fixed buffer `fixed` if that succeeded.
    pub(crate) fn adopt(&self, mut chunk: Chunk, bytes: usize, fixed: Option<u16>) {
        let class = class_of(bytes).expect("a chunk was mapped for a class that exists");
        let block_bytes = BLOCK_CLASSES[class];
        let home = Home::Arena(Arc::as_ptr(&self.shared));
        let block_at = |index: usize| Block {
            // SAFETY: `index * block_bytes` lies within the chunk, which is one mapping.
            base: unsafe { chunk.base.add(index * block_bytes) },
            class: class as u8,
            fixed: AtomicU32::new(fixed.map_or(u32::MAX, u32::from)),
            leases: AtomicU32::new(0),
            lent: AtomicU32::new(0),
            home,
        };
        chunk.blocks = (0..chunk.bytes / block_bytes).map(block_at).collect();
        for block in &chunk.blocks {
            self.shared.give_back(class, BlockRef(NonNull::from(block)));
        }
        self.shared.mapped_blocks[class].fetch_add(chunk.blocks.len() as u64, Ordering::Relaxed);
        self.shared.mapped_bytes.fetch_add(chunk.bytes as u64, Ordering::Relaxed);
        if fixed.is_some() {
            self.shared.registered_bytes.fetch_add(chunk.bytes as u64, Ordering::Relaxed);
        }
        self.shared.chunks.push(chunk);
        self.chunk_count.set(self.chunk_count.get() + 1);
    }

    /// Cuts a free block of a larger class into blocks for `bytes`, for good. Once the budget is mapped this is the only
    /// way on: whoever made the arena grow for large leases and left would else have taken it from the small ones.
    pub(crate) fn carve(&self, bytes: usize) -> bool {
        let Some(class) = class_of(bytes) else { return false };
        let Some(larger) = (class + 1..BLOCK_CLASSES.len()).find(|&larger| self.has_spare(larger, class))
        else {
            return false;
        };
        let Some(parent) = self.shared.free[larger].pop() else { return false };
        // SAFETY: `parent` came out of this arena's free list, so its chunk is alive.
        let header = unsafe { parent.0.as_ref() };
        let fixed = header.fixed.load(Ordering::Relaxed);
        let block_bytes = BLOCK_CLASSES[class];
        let block_at = |index: usize| Block {
            // SAFETY: `index * block_bytes` lies within the parent, which is out of the free list from here on.
            base: unsafe { header.base.add(index * block_bytes) },
            class: class as u8,
            fixed: AtomicU32::new(fixed),
            leases: AtomicU32::new(0),
            lent: AtomicU32::new(0),
            home: header.home,
        };
        let blocks: Box<[Block]> = (0..BLOCK_CLASSES[larger] / block_bytes).map(block_at).collect();
        self.shared.mapped_blocks[larger].fetch_sub(1, Ordering::Relaxed);
        self.shared.mapped_blocks[class].fetch_add(blocks.len() as u64, Ordering::Relaxed);
        for block in &blocks {
            self.shared.give_back(class, BlockRef(NonNull::from(block)));
        }
        self.shared.carved.push(Carved(blocks));
        true
    }

    /// Whether a free block of class `larger` may become blocks of `class`.
    fn has_spare(&self, larger: usize, class: usize) -> bool {
        let mapped = self.shared.mapped_blocks[class].load(Ordering::Relaxed) as usize;
        let more = BLOCK_CLASSES[larger] / BLOCK_CLASSES[class];
        !self.shared.free[larger].is_empty() && mapped + more <= self.shared.free[class].capacity()
    }

    /// How much is mapped, leased and registered now.
    #[must_use]
    pub fn usage(&self) -> ArenaUse {
        ArenaUse {
            mapped_bytes: self.shared.mapped_bytes.load(Ordering::Relaxed),
            leased_bytes: self.shared.leased_bytes.load(Ordering::Relaxed),
            registered_bytes: self.shared.registered_bytes.load(Ordering::Relaxed),
            lent_bytes: self.shared.lent_bytes.load(Ordering::Relaxed),
            bytes_max: self.shared.bytes_max,
        }
    }
}

impl Shared {
    fn give_back(&self, class: usize, block: BlockRef) {
        let pushed = self.free[class].push(block);
        assert!(pushed.is_ok(), "more free blocks of {} bytes than were ever mapped", BLOCK_CLASSES[class]);
    }
}

impl Chunk {
    /// Maps and touches memory for leases of `bytes`. Takes milliseconds: not for a shard's thread.
    pub(crate) fn map(bytes: usize, pages: PageKind) -> std::io::Result<Chunk> {
        let class = class_of(bytes).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
        let bytes = chunk_bytes(class);
        // Reserved pages lie where they must by themselves.
        let (reserve, huge) = match pages {
            PageKind::Transparent | PageKind::Small => (bytes + CHUNK_ALIGN, 0),
            PageKind::Reserved => (bytes, libc::MAP_HUGETLB | libc::MAP_HUGE_2MB),
        };
        let (read_write, private) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | huge);
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches nothing of ours.
        let raw = unsafe { libc::mmap(std::ptr::null_mut(), reserve, read_write, private, -1, 0) };
        if raw == libc::MAP_FAILED {
            let error = std::io::Error::last_os_error();
            return Err(match pages {
                PageKind::Reserved => std::io::Error::new(
                    error.kind(),
                    format!(
                        "{bytes} bytes of reserved huge pages: {error}. Cure: as root, `sysctl vm.nr_hugepages=N` with N \
                         pages of 2 MiB more than are in use"
                    ),
                ),
                PageKind::Transparent | PageKind::Small => error,
            });
        }
        let aligned = (raw as usize).next_multiple_of(CHUNK_ALIGN);
        let (head, tail) = (aligned - raw as usize, raw as usize + reserve - (aligned + bytes));
        // SAFETY: both ranges are the unused ends of the mapping just made and nothing points into them.
        unsafe {
            if head > 0 {
                libc::munmap(raw, head);
            }
            if tail > 0 {
                libc::munmap((aligned + bytes) as *mut _, tail);
            }
        }
        let base = NonNull::new(aligned as *mut u8).expect("mmap does not return null");
        // SAFETY: advice on our own fresh mapping; when the kernel refuses either, pages are touched below.
        let populated = unsafe {
            match pages {
                PageKind::Transparent => _ = libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE),
                PageKind::Small => _ = libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_NOHUGEPAGE),
                PageKind::Reserved => {}
            }
            libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_POPULATE_WRITE) == 0
        };
        if !populated {
            for page in (0..bytes).step_by(4096) {
                // SAFETY: `page` is inside the mapping, which is writable and ours alone.
                unsafe { base.add(page).write_volatile(0) };
            }
        }
        Ok(Chunk { base, bytes, blocks: Box::new([]) })
    }

    /// Where the chunk lies, for registering it with a ring.
    pub(crate) fn as_iovec(&self) -> libc::iovec {
        libc::iovec { iov_base: self.base.as_ptr().cast(), iov_len: self.bytes }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        for block in &self.blocks {
            let leases = block.leases.load(Ordering::Acquire);
            assert_eq!(leases, 0, "arena memory was unmapped under {leases} leases");
        }
        // SAFETY: the mapping is ours and no lease is left on any of its blocks (asserted above).
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

impl BlockRef {
    fn header(&self) -> &Block {
        // SAFETY: a lease holds a strong count of `Shared`, which owns the chunk that this points into.
        unsafe { self.0.as_ref() }
    }

    /// The arena it belongs to, if it is no window.
    fn arena(&self) -> Option<&Shared> {
        match self.header().home {
            // SAFETY: the lease that holds this holds a strong count of `Shared`, taken by `try_lease`.
            Home::Arena(home) => Some(unsafe { &*home }),
            Home::Window(_) => None,
        }
    }

    fn acquire(self) -> BlockRef {
        let before = self.header().leases.fetch_add(1, Ordering::Relaxed);
        assert!(before > 0 && before < u32::MAX / 2, "a lease was cloned from a block with {before} leases");
        self
    }

    fn release(self) {
        let header = self.header();
        if header.leases.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        std::sync::atomic::fence(Ordering::Acquire);
        let class = header.class as usize;
        let home = match header.home {
            Home::Arena(home) => home,
            // SAFETY: the last lease is gone, and nothing else names the window that was made into leases.
            Home::Window(window) => return unsafe { Window::retire(window.cast_mut()) },
        };
        // SAFETY: the strong count taken by `try_lease` is still held, so `home` is alive.
        let shared = unsafe { &*home };
        shared.leased_bytes.fetch_sub(BLOCK_CLASSES[class] as u64, Ordering::Relaxed);
        shared.give_back(class, self);
        // SAFETY: gives back the count taken by `try_lease`; neither `shared` nor `self` is used afterwards.
        unsafe { Arc::decrement_strong_count(home) };
    }

    fn window(&self) -> Option<&Window> {
        match self.header().home {
            Home::Arena(_) => None,
            // SAFETY: a window lives until its last lease is gone, and this is one.
            Home::Window(window) => Some(unsafe { &*window }),
        }
    }

    fn pointer(&self, start: u32) -> *mut u8 {
        // SAFETY: every lease's start lies within its block.
        unsafe { self.header().base.add(start as usize).as_ptr() }
    }

    fn fixed(&self) -> Option<u16> {
        u16::try_from(self.header().fixed.load(Ordering::Relaxed)).ok()
    }
}

impl LeaseMut {
    /// Gives away the first `bytes` as a lease of their own and keeps the rest.
    ///
    /// # Panics
    /// When the lease is shorter.
    #[must_use]
    pub fn split_to(&mut self, bytes: usize) -> LeaseMut {
        assert!(bytes <= self.len(), "{bytes} bytes were split from a lease of {}", self.len());
        let middle = self.start + bytes as u32;
        let front = LeaseMut { block: self.block.acquire(), start: self.start, end: middle };
        self.start = middle;
        front
    }

    /// Keeps the first `bytes` and gives away the rest.
    ///
    /// # Panics
    /// When the lease is shorter.
    #[must_use]
    pub fn split_off(&mut self, bytes: usize) -> LeaseMut {
        let front = self.split_to(bytes);
        std::mem::replace(self, front)
    }

    /// Joins a neighbour that begins where this one ends, as after [`LeaseMut::split_off`].
    ///
    /// # Panics
    /// When `next` does not follow in the same block.
    pub fn unsplit(&mut self, next: LeaseMut) {
        assert!(self.block.0 == next.block.0 && self.end == next.start, "only neighbours can be joined");
        self.end = next.end;
    }

    /// Gives up the right to write: from here on the bytes never change.
    #[must_use]
    pub fn freeze(self) -> Lease {
        let lease = Lease { block: self.block, start: self.start, end: self.end };
        std::mem::forget(self);
        lease
    }

    /// Where this lease begins within its block (blocks are aligned to their size, at least 4096).
    #[must_use]
    pub fn block_position(&self) -> usize {
        self.start as usize
    }

    pub(crate) fn fixed(&self) -> Option<u16> {
        self.block.fixed()
    }
}

impl Lease {
    /// A lease of a part.
    ///
    /// # Panics
    /// When the range does not lie within this lease.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Lease {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "{range:?} of a lease of {}",
            self.len()
        );
        let start = self.start + range.start as u32;
        Lease { block: self.block.acquire(), start, end: start + (range.end - range.start) as u32 }
    }

    /// The right to write again, if this lease covers its whole block and is the only one on it.
    ///
    /// # Errors
    /// The lease itself, otherwise.
    pub fn try_into_mut(self) -> Result<LeaseMut, Lease> {
        let whole = self.start == 0 && self.len() == self.block_bytes();
        if !whole || self.block.header().leases.load(Ordering::Acquire) != 1 {
            return Err(self);
        }
        let lease = LeaseMut { block: self.block, start: self.start, end: self.end };
        std::mem::forget(self);
        Ok(lease)
    }

    /// Bytes of the whole block that this lease keeps from being used again.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        BLOCK_CLASSES[self.block.header().class as usize]
    }

    /// Whether both leases keep the same block.
    #[must_use]
    pub fn same_block(&self, other: &Lease) -> bool {
        self.block.0 == other.block.0
    }

    /// Extends this lease over `next` if that begins where this one ends, in the same block; else gives it back.
    ///
    /// # Errors
    /// `next` itself, when it is no neighbour.
    pub fn try_join(&mut self, next: Lease) -> Result<(), Lease> {
        if !self.same_block(&next) || self.end != next.start {
            return Err(next);
        }
        self.end = next.end;
        Ok(())
    }

    pub(crate) fn fixed(&self) -> Option<u16> {
        self.block.fixed()
    }

    /// Whether this is memory of a file of which something is gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.block.window().is_some_and(|window| window.mapping.is_lost())
    }

    /// The registered buffer that covers it, if it is `arena`'s: indexes of another ring's mean nothing to this one.
    pub(crate) fn fixed_in(&self, arena: &Arena) -> Option<u16> {
        let home = self.block.arena().is_some_and(|home| std::ptr::eq(home, &raw const *arena.shared));
        if home { self.block.fixed() } else { None }
    }

    /// A second lease on the same bytes, to be held by the kernel; `None` when as much of its arena is lent as may be. A
    /// block counts once, whole, however many sends read from it: that is what they keep from being used again.
    pub(crate) fn lend(&self) -> Option<LentLease> {
        // Memory of a file is none of ours to lend: it may be taken away.
        let shared = self.block.arena()?;
        let lent = LentLease(self.clone());
        let header = lent.0.block.header();
        let block_bytes = lent.0.block_bytes() as u64;
        if header.lent.fetch_add(1, Ordering::Relaxed) > 0 {
            return Some(lent);
        }
        let before = shared.lent_bytes.fetch_add(block_bytes, Ordering::Relaxed);
        // Dropped if there is no room, which takes both back. Who came in between on another thread keeps the block counted.
        (before + block_bytes <= shared.bytes_max / LENT_PART).then_some(lent)
    }
}

impl Deref for LentLease {
    type Target = Lease;

    fn deref(&self) -> &Lease {
        &self.0
    }
}

impl Drop for LentLease {
    fn drop(&mut self) {
        if self.0.block.header().lent.fetch_sub(1, Ordering::Relaxed) == 1 {
            let block_bytes = self.0.block_bytes() as u64;
            let shared = self.0.block.arena().expect("only an arena's memory is lent");
            shared.lent_bytes.fetch_sub(block_bytes, Ordering::Relaxed);
        }
    }
}

/// A mapping made into leases: unmapped when the last of them is gone.
pub(crate) struct Window {
    block: Block,
    mapping: WriteMap,
    unmap: Box<dyn Fn(WriteMap) + Send + Sync>,
}

impl Window {
    /// All of a mapping as one lease; `unmap` gets it when it is not used any more.
    pub(crate) fn lease(mapping: WriteMap, unmap: Box<dyn Fn(WriteMap) + Send + Sync>) -> LeaseMut {
        let bytes = mapping.bytes();
        let class = class_of(bytes).expect("no window is larger than the largest lease");
        let block = Block {
            base: mapping.base(),
            class: class as u8,
            fixed: AtomicU32::new(u32::MAX),
            leases: AtomicU32::new(1),
            lent: AtomicU32::new(0),
            home: Home::Arena(std::ptr::null()),
        };
        let window = Box::into_raw(Box::new(Window { block, mapping, unmap }));
        // SAFETY: the box was just given up, so it lives until `retire` takes it again, and nobody else knows it yet.
        let block = unsafe {
            (*window).block.home = Home::Window(window);
            BlockRef(NonNull::from(&(*window).block))
        };
        LeaseMut { block, start: 0, end: bytes as u32 }
    }

    /// # Safety
    /// `window` came from [`Window::lease`], and no lease on it is left.
    unsafe fn retire(window: *mut Window) {
        // SAFETY: as promised by the caller.
        let Window { mapping, unmap, .. } = *unsafe { Box::from_raw(window) };
        unmap(mapping);
    }
}

impl Clone for Lease {
    fn clone(&self) -> Lease {
        Lease { block: self.block.acquire(), start: self.start, end: self.end }
    }
}

impl Drop for LeaseMut {
    fn drop(&mut self) {
        self.block.release();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.block.release();
    }
}

impl Deref for LeaseMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies within the block, the memory is initialised (mapped zeroed and touched), and
        // this is the only lease on the range that can write it.
        unsafe {
            std::slice::from_raw_parts(self.block.pointer(self.start), (self.end - self.start) as usize)
        }
    }
}

impl DerefMut for LeaseMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; and no `Lease` covers the range, since leases come from `freeze` only.
        unsafe {
            std::slice::from_raw_parts_mut(self.block.pointer(self.start), (self.end - self.start) as usize)
        }
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies within the block and nobody holds a right to write it.
        unsafe {
            std::slice::from_raw_parts(self.block.pointer(self.start), (self.end - self.start) as usize)
        }
    }
}

pub(super) fn class_of(bytes: usize) -> Option<usize> {
    BLOCK_CLASSES.iter().position(|&block_bytes| bytes <= block_bytes)
}

/// The most blocks of one class: what the budget allows, and at most 64 Ki of them.
fn blocks_max(bytes_max: u64, block_bytes: usize) -> usize {
    (bytes_max as usize / block_bytes).clamp(1, 64 << 10)
}

fn chunk_bytes(class: usize) -> usize {
    match BLOCK_CLASSES[class] {
        small if small <= 64 << 10 => CHUNK_BYTES_MIN,
        medium if medium <= 1 << 20 => 4 << 20,
        large => large,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena_with(bytes: usize) -> Arena {
        let arena = Arena::new(64 << 20);
        arena.adopt(Chunk::map(bytes, PageKind::Transparent).unwrap(), bytes, None);
        arena
    }

    #[test]
    fn a_block_comes_back_when_its_last_lease_is_gone() {
        let arena = arena_with(64 << 10);
        let free = arena.free_blocks(64 << 10);
        let mut lease = arena.try_lease(50_000).unwrap();
        assert_eq!(lease.len(), 64 << 10);
        lease[..3].copy_from_slice(b"abc");
        let front = lease.split_to(3).freeze();
        let twin = front.slice(1..2);
        drop(lease);
        drop(front);
        assert_eq!(arena.free_blocks(64 << 10), free - 1);
        assert_eq!(&twin[..], b"b");
        drop(twin);
        assert_eq!(arena.free_blocks(64 << 10), free);
        assert_eq!(arena.usage().leased_bytes, 0);
    }

    #[test]
    fn a_lease_outlives_its_arena_and_may_be_released_elsewhere() {
        let arena = arena_with(4096);
        let mut lease = arena.try_lease(10).unwrap();
        lease[0] = 7;
        let lease = lease.freeze();
        drop(arena);
        let sum = std::thread::spawn(move || lease[0]).join().unwrap();
        assert_eq!(sum, 7);
    }

    #[test]
    fn split_parts_join_again() {
        let arena = arena_with(4096);
        let mut lease = arena.try_lease(4096).unwrap();
        let rest = lease.split_off(1000);
        assert_eq!((lease.len(), rest.len()), (1000, 3096));
        lease.unsplit(rest);
        assert_eq!(lease.len(), 4096);
    }

    #[test]
    fn growth_stops_at_the_budget() {
        let arena = Arena::new(3 << 20);
        assert_eq!(arena.growth_for(4096), Some(2 << 20));
        arena.adopt(Chunk::map(4096, PageKind::Transparent).unwrap(), 4096, None);
        assert_eq!(arena.growth_for(4096), None);
        assert!(arena.try_lease(LEASE_BYTES_MAX + 1).is_none());
    }

    #[test]
    fn what_is_lent_is_counted_by_blocks_and_stays_within_its_part_of_the_budget() {
        let arena = Arena::new(16 << 20);
        arena.adopt(Chunk::map(1 << 20, PageKind::Transparent).unwrap(), 1 << 20, None);
        arena.adopt(Chunk::map(1 << 20, PageKind::Transparent).unwrap(), 1 << 20, None);
        let leases: Vec<Lease> = (0..5).map(|_| arena.try_lease(1 << 20).unwrap().freeze()).collect();
        // Three readers of one block keep one block.
        let mut lent: Vec<LentLease> = (0..3).map(|n| leases[0].slice(n..n + 9).lend().unwrap()).collect();
        assert_eq!(arena.usage().lent_bytes, 1 << 20);
        lent.extend(leases[1..4].iter().map(|lease| lease.lend().unwrap()));
        assert!(leases[4].lend().is_none(), "a quarter is lent");
        assert_eq!(arena.usage().lent_bytes, 4 << 20);
        assert!(leases[3].lend().is_some(), "a block that is lent costs no more");
        drop(leases);
        lent.drain(..2);
        assert_eq!((arena.usage().lent_bytes, arena.free_blocks(1 << 20)), (4 << 20, 4));
        lent.drain(..1);
        assert_eq!((arena.usage().lent_bytes, arena.free_blocks(1 << 20)), (3 << 20, 5));
        drop(lent);
        assert_eq!((arena.usage().lent_bytes, arena.usage().leased_bytes), (0, 0));
    }

    /// Once a budget that had been mapped for large leases stayed theirs: nobody else got memory, ever again.
    #[test]
    fn large_blocks_that_nobody_uses_serve_small_leases() {
        let arena = Arena::new(16 << 20);
        arena.adopt(Chunk::map(16 << 20, PageKind::Transparent).unwrap(), 16 << 20, None);
        let large = arena.try_lease(16 << 20).unwrap();
        assert!(!arena.carve(4096), "it is in use");
        drop(large);
        assert!(arena.growth_for(1 << 20).is_none() && arena.try_lease(1 << 20).is_none());
        assert!(arena.carve(1 << 20));
        let mut leases: Vec<LeaseMut> = (0..16).map(|_| arena.try_lease(1 << 20).unwrap()).collect();
        assert_eq!(arena.usage().leased_bytes, 16 << 20);
        for (number, lease) in leases.iter_mut().enumerate() {
            lease.fill(number as u8);
        }
        assert!(leases.iter().enumerate().all(|(n, lease)| lease.iter().all(|byte| *byte == n as u8)));
        assert!(!arena.carve(4096), "nothing is free");
        leases.truncate(15);
        assert!(arena.carve(4096) && arena.try_lease(4096).is_some());
        drop(arena);
        drop(leases);
    }
}
