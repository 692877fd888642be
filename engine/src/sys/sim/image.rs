//! The content of a simulated disk: files as shared pages, and a whole disk as it is found after a crash.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) const PAGE_BYTES: usize = 4096;
pub(super) const SECTOR_BYTES: u64 = 512;

type Page = [u8; PAGE_BYTES];

/// The bytes of one file. Pages that were never written are zeros and take no memory; clones share pages.
#[derive(Clone, Default)]
pub(super) struct Content {
    pages: Arc<BTreeMap<u64, Arc<Page>>>,
    pub size: u64,
}

impl Content {
    /// Puts bytes without changing the size.
    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let pages = Arc::make_mut(&mut self.pages);
        let (mut at, mut bytes) = (at, bytes);
        while !bytes.is_empty() {
            let within = (at % PAGE_BYTES as u64) as usize;
            let now = bytes.len().min(PAGE_BYTES - within);
            let page = pages.entry(at / PAGE_BYTES as u64).or_insert_with(|| Arc::new([0; PAGE_BYTES]));
            Arc::make_mut(page)[within..within + now].copy_from_slice(&bytes[..now]);
            at += now as u64;
            bytes = &bytes[now..];
        }
    }

    /// Where the next page begins, at or behind `at`, that was written; the size where there is none.
    pub fn next_data(&self, at: u64) -> u64 {
        let next = self.pages.range(at / PAGE_BYTES as u64..).next();
        next.map_or(self.size, |(page, _)| (page * PAGE_BYTES as u64).max(at)).min(self.size)
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        self.put(at, bytes);
        self.size = self.size.max(at + bytes.len() as u64);
    }

    /// Bytes read; fewer than asked for at the end.
    pub fn read(&self, at: u64, into: &mut [u8]) -> usize {
        let bytes = self.size.saturating_sub(at).min(into.len() as u64) as usize;
        let mut done = 0;
        while done < bytes {
            let position = at + done as u64;
            let within = (position % PAGE_BYTES as u64) as usize;
            let now = (bytes - done).min(PAGE_BYTES - within);
            match self.pages.get(&(position / PAGE_BYTES as u64)) {
                Some(page) => into[done..done + now].copy_from_slice(&page[within..within + now]),
                None => into[done..done + now].fill(0),
            }
            done += now;
        }
        bytes
    }

    pub fn read_all(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        self.read(0, &mut bytes);
        bytes
    }

    /// Cuts or extends; what is cut off reads as zeros if the file grows again.
    pub fn set_size(&mut self, size: u64) {
        self.size = size;
        let page_after = size.div_ceil(PAGE_BYTES as u64);
        let within = (size % PAGE_BYTES as u64) as usize;
        let beyond = self.pages.range(page_after..).next().is_some();
        let partial = within > 0 && self.pages.contains_key(&(size / PAGE_BYTES as u64));
        if !beyond && !partial {
            return;
        }
        let pages = Arc::make_mut(&mut self.pages);
        if beyond {
            drop(pages.split_off(&page_after));
        }
        if let Some(page) = pages.get_mut(&(size / PAGE_BYTES as u64)).filter(|_| partial)
            && page[within..].iter().any(|&byte| byte != 0)
        {
            Arc::make_mut(page)[within..].fill(0);
        }
    }
}

#[derive(Clone)]
pub(super) enum ImageNode {
    Dir,
    File(Content),
}

/// A whole disk at rest: what a world boots from. Clones share pages.
#[derive(Clone, Default)]
pub struct DiskImage {
    pub(super) nodes: BTreeMap<PathBuf, ImageNode>,
}

impl DiskImage {
    /// An empty disk.
    #[must_use]
    pub fn new() -> DiskImage {
        DiskImage::default()
    }

    /// The paths of all files, in order.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        let files = self.nodes.iter().filter(|(_, node)| matches!(node, ImageNode::File(_)));
        files.map(|(path, _)| path.clone()).collect()
    }

    /// The bytes of a file; `None` when it is not there.
    #[must_use]
    pub fn read(&self, path: &Path) -> Option<Vec<u8>> {
        match self.nodes.get(path) {
            Some(ImageNode::File(content)) => Some(content.read_all()),
            _ => None,
        }
    }

    /// Writes bytes into a file, which is made if it is not there, with the directories above it.
    pub fn write(&mut self, path: &Path, at: u64, bytes: &[u8]) {
        self.content(path).write(at, bytes);
    }

    /// Cuts or extends a file, which is made if it is not there.
    pub fn set_len(&mut self, path: &Path, bytes: u64) {
        self.content(path).set_size(bytes);
    }

    /// Removes a file. True when it was there.
    pub fn remove(&mut self, path: &Path) -> bool {
        match self.nodes.get(path) {
            Some(ImageNode::File(_)) => self.nodes.remove(path).is_some(),
            _ => false,
        }
    }

    fn content(&mut self, path: &Path) -> &mut Content {
        for above in path.ancestors().skip(1) {
            self.nodes.entry(above.to_owned()).or_insert(ImageNode::Dir);
        }
        let node = self.nodes.entry(path.to_owned()).or_insert_with(|| ImageNode::File(Content::default()));
        match node {
            ImageNode::File(content) => content,
            ImageNode::Dir => panic!("{} is a directory", path.display()),
        }
    }
}
