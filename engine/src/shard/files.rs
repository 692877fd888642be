//! The segment files of one partition: which are open, which are ready for promises, which want a flush.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::log::{Ext, segment_file_name};
use crate::sys::File;
use crate::transfer::SegmentFile;
use crate::types::Offset;

/// One segment's file.
pub(super) struct SegmentFiles {
    pub base: Offset,
    /// For appends; gone once the segment is finished.
    pub writer: Option<File>,
    /// For readers, through the page cache; opened when first asked for.
    pub reader: Option<Rc<SegmentFile>>,
    /// Its name survives power loss.
    pub named: bool,
    /// It was written to since its last flush.
    pub dirty: bool,
    /// It was, and a flush of the whole device is under way.
    pub flushing: bool,
    /// Sealed, flushed, trimmed, its indexes written: nothing is left to do.
    pub finished: bool,
    /// How it is was taken from the manifest.
    pub recorded: bool,
    /// Its indexes lie in their files, and cover it.
    pub indexed: bool,
}

/// All of a partition, oldest first.
pub(super) struct Files {
    dir: PathBuf,
    files: VecDeque<SegmentFiles>,
}

impl Files {
    pub(super) fn new(dir: PathBuf) -> Files {
        Files { dir, files: VecDeque::new() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn path(&self, base: Offset, ext: Ext) -> PathBuf {
        self.dir.join(segment_file_name(base, ext))
    }

    pub(super) fn push(&mut self, base: Offset, finished: bool) {
        if let Some(last) = self.files.back() {
            assert!(last.base < base, "segment {base} after {}", last.base);
        }
        self.files.push_back(SegmentFiles {
            base,
            writer: None,
            reader: None,
            named: finished,
            dirty: false,
            flushing: false,
            finished,
            recorded: false,
            indexed: finished,
        });
    }

    pub(super) fn get(&self, base: Offset) -> Option<&SegmentFiles> {
        self.files.iter().rev().find(|f| f.base == base)
    }

    pub(super) fn get_mut(&mut self, base: Offset) -> Option<&mut SegmentFiles> {
        self.files.iter_mut().rev().find(|f| f.base == base)
    }

    /// Forgets a segment. Its descriptors close when the last plan that uses them is gone.
    pub(super) fn remove(&mut self, base: Offset) {
        self.files.retain(|f| f.base != base);
    }

    /// All of them are as the manifest says; nobody has looked.
    pub(super) fn note_recorded(&mut self) {
        self.files.iter_mut().for_each(|file| file.recorded = true);
    }

    /// What was written up to the segment `last` counts as clean from here on: writes that come later make it dirty again.
    pub(super) fn begin_flush(&mut self, last: Offset) {
        for file in self.files.iter_mut().filter(|f| f.dirty && f.base <= last && f.writer.is_some()) {
            (file.dirty, file.flushing) = (false, true);
        }
    }

    /// The next of those that were flushed; its name is, too. One that is gone meanwhile is none.
    pub(super) fn end_flush(&mut self) -> Option<(Offset, File)> {
        self.files.iter_mut().filter(|f| f.flushing).find_map(|file| {
            (file.flushing, file.named) = (false, true);
            // Who finished it meanwhile has flushed it, and closed it.
            file.writer.clone().map(|writer| (file.base, writer))
        })
    }

    /// They were not flushed, after all.
    pub(super) fn give_up_flush(&mut self) {
        for file in self.files.iter_mut().filter(|f| f.flushing) {
            (file.dirty, file.flushing) = (true, false);
        }
    }

    /// Closes what is open.
    pub(super) fn close(&mut self) {
        for file in &mut self.files {
            (file.writer, file.reader) = (None, None);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &SegmentFiles> {
        self.files.iter()
    }
}
