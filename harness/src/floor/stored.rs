//! Logs made beforehand, for the floors of catching up: whole batches with their offsets, one file a partition.
//!
//! They are written by the load's process, without any server, under the names that a topic's directories have; the
//! record of what is in them verifies what is read, as with a server's. Beside each file lies the list of its batches, so
//! that nothing need be read to find them.

use std::cell::OnceCell;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use ringlog::sys::{self, OpenOptions, Ring};
use serde::{Deserialize, Serialize};

use crate::batch::BatchWriter;
use crate::keys::Keys;
use crate::payload::{Head, Payload};
use crate::producers::Produced;
use crate::spec::RunSpec;
use crate::verify::Sent;

/// The topic that the files are of.
pub const MADE_TOPIC: &str = "made";
const LOG: &str = "00000000000000000000.log";
const BATCHES: &str = "batches.json";

/// What lies in the files, for those who verify it.
pub struct Made {
    /// Where they lie.
    pub directory: PathBuf,
    /// The run number that their records carry.
    pub run: u32,
    /// As if producers had sent it and been answered.
    pub produced: Rc<Vec<Produced>>,
    /// Bytes of batches.
    pub bytes: u64,
}

/// A partition's batches: where each begins, and what is behind the last.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Batches {
    /// Base offset and position.
    begins: Vec<(i64, u64)>,
    end: (i64, u64),
}

/// Makes the files of [`MADE_TOPIC`] below `directory`.
///
/// # Errors
/// When they cannot be written; the message names the file.
pub fn make(
    directory: &Path,
    spec: &RunSpec,
    payload: &Payload,
    batch_bytes: usize,
    (run, seed): (u32, u64),
) -> Result<Made> {
    let partitions = spec.partitions as usize;
    let mut logs = Vec::new();
    for partition in 0..partitions {
        let place = directory.join(format!("{MADE_TOPIC}-{partition}"));
        fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
        let path = place.join(LOG);
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        logs.push((BufWriter::with_capacity(1 << 20, file), Batches::default(), path));
    }
    let mut produced: Vec<Produced> = (0..spec.producers).map(|_| Produced::default()).collect();
    for one in &mut produced {
        one.sent = vec![Sent::default(); partitions];
        one.end_offsets = vec![0; partitions];
    }
    let mut keys: Vec<Keys> =
        (0..spec.producers).map(|index| Keys::new(spec.keys, spec.partitions, seed, index)).collect();
    let mut memory = vec![0; batch_bytes];
    let mut bytes = 0;
    for producer in (0..spec.producers).cycle() {
        if bytes >= spec.catch_up_bytes as u64 {
            break;
        }
        let keys = &mut keys[producer as usize];
        let partition = keys.partition();
        let sent = &mut produced[producer as usize].sent[partition as usize];
        let first = sent.end;
        let mut batch = BatchWriter::begin(&mut memory, 0);
        loop {
            let head = Head { producer, partition, sequence: sent.end, intended_ns: 0, run };
            let key = keys.key(partition);
            if payload.push(&mut batch, &head, key.as_ref().map(|key| &key[..])).is_none() {
                break;
            }
            sent.end += 1;
        }
        sent.acked.extend(first..sent.end);
        let records = i64::from(batch.records());
        let length = batch.finish();
        let (file, batches, path) = &mut logs[partition as usize];
        let (offset, position) = batches.end;
        memory[..8].copy_from_slice(&offset.to_be_bytes());
        file.write_all(&memory[..length]).with_context(|| path.display().to_string())?;
        batches.begins.push((offset, position));
        batches.end = (offset + records, position + length as u64);
        let ends = &mut produced[producer as usize].end_offsets;
        ends[partition as usize] = offset + records;
        bytes += length as u64;
    }
    for (mut file, batches, path) in logs {
        file.flush().with_context(|| path.display().to_string())?;
        fs::write(path.with_file_name(BATCHES), serde_json::to_vec(&batches)?)
            .with_context(|| path.display().to_string())?;
    }
    Ok(Made { directory: directory.to_owned(), run, produced: Rc::new(produced), bytes })
}

/// The logs that [`make`] made, by partition, and what is in them.
pub(crate) fn logs(directory: &Path) -> Result<Vec<(PathBuf, Batches)>> {
    let mut places = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.rsplit_once('-')?.1.parse::<u32>().ok());
        places.push((number.with_context(|| path.display().to_string())?, path));
    }
    places.sort();
    let log = |(_, place): (u32, PathBuf)| {
        let batches = fs::read(place.join(BATCHES)).with_context(|| place.display().to_string())?;
        Ok((place.join(LOG), serde_json::from_slice(&batches)?))
    };
    places.into_iter().map(log).collect()
}

/// The files as the floor has them open.
pub(super) struct Stored {
    partitions: Vec<Partition>,
}

#[derive(Clone)]
pub(super) struct Partition {
    pub file: sys::File,
    /// Past the page cache.
    pub direct: sys::File,
    batches: Rc<Batches>,
    /// Made when it is first asked for.
    map: Rc<OnceCell<sys::FileMap>>,
}

/// A stretch of whole batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stretch {
    pub at: u64,
    pub bytes: u64,
    /// The offset behind it.
    pub end: i64,
}

impl Stored {
    /// Opens what [`make`] made: the directories of one topic.
    pub(super) async fn open(ring: &Ring, directory: &Path) -> Result<Stored> {
        let mut partitions = Vec::new();
        for (path, batches) in logs(directory)? {
            let open = async |direct| {
                let options = OpenOptions { direct, ..OpenOptions::default() };
                ring.open(&path, options).await.with_context(|| path.display().to_string())
            };
            let (file, direct, map) = (open(false).await?, open(true).await?, Rc::default());
            partitions.push(Partition { file, direct, batches: Rc::new(batches), map });
        }
        Ok(Stored { partitions })
    }

    pub(super) fn partition(&self, index: u32) -> Result<&Partition> {
        let count = self.partitions.len();
        self.partitions
            .get(index as usize)
            .with_context(|| format!("partition {index} at a floor of {count}"))
    }
}

impl Partition {
    /// The offset behind the last batch.
    pub(super) fn end(&self) -> i64 {
        self.batches.end()
    }

    /// The whole file, mapped.
    pub(super) async fn map(&self, ring: &Ring) -> Result<sys::FileMap> {
        if let Some(map) = self.map.get() {
            return Ok(map.clone());
        }
        let map = ring.map(&self.file, self.batches.end.1).await.context("a map of the file")?;
        Ok(self.map.get_or_init(|| map).clone())
    }

    /// The whole batches from `offset` on that fit `bytes_max`, at least one; none at the end.
    pub(super) fn stretch(&self, offset: i64, bytes_max: u64) -> Result<Option<Stretch>> {
        self.batches.stretch(offset, bytes_max)
    }
}

impl Batches {
    /// The offset behind the last batch.
    pub(crate) fn end(&self) -> i64 {
        self.end.0
    }

    /// As [`Partition::stretch`].
    pub(crate) fn stretch(&self, offset: i64, bytes_max: u64) -> Result<Option<Stretch>> {
        let Batches { begins, end } = self;
        if offset >= end.0 {
            return Ok(None);
        }
        let first = begins.partition_point(|(base, _)| *base < offset);
        let &(base, at) = begins.get(first).context("an offset behind the last batch")?;
        ensure!(base == offset, "offset {offset} is not a batch's first: the next one begins at {base}");
        let ends = begins[first + 1..].iter().chain([end]).take_while(|(_, to)| *to <= at + bytes_max);
        let &(end, to) = ends.last().unwrap_or_else(|| begins.get(first + 1).unwrap_or(end));
        Ok(Some(Stretch { at, bytes: to - at, end }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batches as Walk;
    use crate::spec::tests::spec;

    #[test]
    fn what_was_made_is_whole_batches_in_order_and_its_record_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let spec = spec("--partitions 3 --producers 2 --catch-up-bytes 500000 --batch-bytes 16KiB");
        let payload = Payload::seeded(1000, 1);
        let made = make(directory.path(), &spec, &payload, 16384, (7, 1)).unwrap();
        let mut records = 0;
        for partition in 0..3 {
            let path = directory.path().join(format!("{MADE_TOPIC}-{partition}")).join(LOG);
            let bytes = fs::read(path).unwrap();
            let mut next = 0;
            for batch in Walk::new(&bytes) {
                let batch = batch.unwrap();
                assert!(batch.crc_is_good());
                assert_eq!(batch.base_offset(), next);
                next += i64::from(batch.last_offset_delta()) + 1;
            }
            let told = made.produced.iter().map(|one| one.end_offsets[partition]).max().unwrap();
            assert_eq!(next, told);
            records += next as u64;
        }
        let sent: u64 = made.produced.iter().flat_map(|one| &one.sent).map(|sent| sent.end).sum();
        assert_eq!(records, sent);
        assert!(made.bytes >= 500_000 && made.bytes < 500_000 + 16384);
    }

    #[test]
    fn stretches_are_whole_batches_and_at_least_one() {
        let batches = Batches { begins: vec![(0, 0), (10, 100), (20, 200), (30, 900)], end: (40, 1000) };
        let stretch = |offset, bytes_max| batches.stretch(offset, bytes_max).unwrap();
        assert_eq!(stretch(0, 250), Some(Stretch { at: 0, bytes: 200, end: 20 }));
        assert_eq!(stretch(0, 200), Some(Stretch { at: 0, bytes: 200, end: 20 }));
        assert_eq!(
            stretch(0, 10),
            Some(Stretch { at: 0, bytes: 100, end: 10 }),
            "the first one, however large"
        );
        assert_eq!(stretch(20, 10), Some(Stretch { at: 200, bytes: 700, end: 30 }));
        assert_eq!(stretch(0, 5000), Some(Stretch { at: 0, bytes: 1000, end: 40 }));
        assert_eq!(stretch(30, 99), Some(Stretch { at: 900, bytes: 100, end: 40 }));
        assert_eq!(stretch(40, 99), None);
        assert!(batches.stretch(5, 99).unwrap_err().to_string().contains("begins at 10"));
    }
}
