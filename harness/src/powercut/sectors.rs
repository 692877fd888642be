//! What a disk with a volatile write cache holds, sector by sector, and what of it survives a power cut.
//!
//! ```text
//! image    what is durable: a file                                  flush: newest versions -> image
//! cached   sector -> its versions since the last flush, oldest first     cut: one version, or none -> image
//! ```
//!
//! A flush makes the newest version of every sector durable, a write with FUA makes its own. A cut leaves of each sector
//! what was durable or one of the versions since: any subset, torn inside a request, as disks may.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What is written whole or not at all.
pub const SECTOR_BYTES: usize = 512;

type Sector = Box<[u8; SECTOR_BYTES]>;

/// One value that a sector has had since the last flush.
struct Version {
    /// The number of the write that brought it.
    write: u64,
    bytes: Sector,
}

/// A disk's bytes.
pub struct Sectors {
    image: File,
    cached: BTreeMap<u64, Vec<Version>>,
    writes: u64,
}

/// Which versions survive a cut.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    Nothing,
    Everything,
    /// Each version of each sector by a coin that says yes so often.
    Sectors(f64),
    /// Each write as a whole.
    Writes(f64),
    /// The last write only, so that all before it are missing.
    Newest,
}

/// What a cut did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Survivors {
    /// Sectors written since they were last made durable.
    pub unflushed: u64,
    /// Of these, how many have their newest bytes.
    pub newest: u64,
    /// How many have bytes that were overwritten since.
    pub older: u64,
    /// How many have what was durable.
    pub lost: u64,
}

impl Sectors {
    /// Over an image, all of it durable.
    #[must_use]
    pub fn new(image: File) -> Sectors {
        Sectors { image, cached: BTreeMap::new(), writes: 0 }
    }

    /// Writes whole sectors; `fua` makes them durable at once.
    ///
    /// # Errors
    /// What the image's file system said.
    ///
    /// # Panics
    /// When it is not whole sectors.
    pub fn write(&mut self, position: u64, bytes: &[u8], fua: bool) -> io::Result<()> {
        let first = sector_at(position, bytes.len());
        self.writes += 1;
        if fua {
            // Older versions must not come back over it.
            for sector in first..first + (bytes.len() / SECTOR_BYTES) as u64 {
                self.cached.remove(&sector);
            }
            return self.image.write_all_at(bytes, position);
        }
        for (sector, bytes) in (first..).zip(bytes.chunks_exact(SECTOR_BYTES)) {
            let bytes = Box::new(bytes.try_into().expect("a chunk of that size"));
            self.cached.entry(sector).or_default().push(Version { write: self.writes, bytes });
        }
        Ok(())
    }

    /// Reads whole sectors: the newest of each.
    ///
    /// # Errors
    /// What the image's file system said.
    ///
    /// # Panics
    /// When it is not whole sectors.
    pub fn read(&self, position: u64, bytes: &mut [u8]) -> io::Result<()> {
        let first = sector_at(position, bytes.len());
        self.image.read_exact_at(bytes, position)?;
        for (sector, versions) in self.cached.range(first..first + (bytes.len() / SECTOR_BYTES) as u64) {
            let newest = versions.last().expect("a cached sector has a version");
            let at = (sector - first) as usize * SECTOR_BYTES;
            bytes[at..at + SECTOR_BYTES].copy_from_slice(&newest.bytes[..]);
        }
        Ok(())
    }

    /// Makes all of it durable.
    ///
    /// # Errors
    /// What the image's file system said.
    pub fn flush(&mut self) -> io::Result<()> {
        let newest = |versions: Vec<Version>| versions.into_iter().last().map(|version| version.bytes);
        let cached = std::mem::take(&mut self.cached);
        keep(
            &self.image,
            cached.into_iter().filter_map(|(sector, versions)| Some((sector, newest(versions)?))),
        )
    }

    /// The power is cut: what was not flushed survives in part.
    ///
    /// # Errors
    /// What the image's file system said.
    pub fn cut(self, random: &mut fastrand::Rng) -> io::Result<Survivors> {
        let fate = match random.u8(0..8) {
            0 => Fate::Nothing,
            1 => Fate::Everything,
            2 => Fate::Newest,
            3 | 4 => Fate::Writes(random.f64()),
            _ => Fate::Sectors(random.f64()),
        };
        let salt = random.u64(..);
        let mut found = Survivors::default();
        let mut kept = Vec::new();
        for (sector, mut versions) in self.cached {
            found.unflushed += 1;
            let last = versions.len() - 1;
            let survives = |version: &Version| match fate {
                Fate::Nothing => false,
                Fate::Everything => true,
                Fate::Newest => version.write == self.writes,
                Fate::Writes(share) => fastrand::Rng::with_seed(salt ^ version.write).f64() < share,
                Fate::Sectors(_) => false,
            };
            let survivor = match fate {
                // Each may have been the last to reach the platter, or none.
                Fate::Sectors(share) => (random.f64() < share).then(|| random.usize(0..=last)),
                _ => versions.iter().rposition(survives),
            };
            match survivor {
                None => found.lost += 1,
                Some(at) => {
                    *if at == last { &mut found.newest } else { &mut found.older } += 1;
                    kept.push((sector, versions.swap_remove(at).bytes));
                }
            }
        }
        keep(&self.image, kept.into_iter())?;
        Ok(found)
    }
}

fn sector_at(position: u64, bytes: usize) -> u64 {
    let whole = position.is_multiple_of(SECTOR_BYTES as u64) && bytes.is_multiple_of(SECTOR_BYTES);
    assert!(whole, "{bytes} bytes at {position} are not whole sectors");
    position / SECTOR_BYTES as u64
}

/// Writes sectors, neighbours at once.
fn keep(image: &File, sectors: impl Iterator<Item = (u64, Sector)>) -> io::Result<()> {
    let (mut first, mut run) = (0, Vec::new());
    for (sector, bytes) in sectors {
        if first + (run.len() / SECTOR_BYTES) as u64 != sector {
            image.write_all_at(&run, first * SECTOR_BYTES as u64)?;
            (first, run) = (sector, Vec::new());
        }
        run.extend_from_slice(&bytes[..]);
    }
    image.write_all_at(&run, first * SECTOR_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECTORS: u64 = 8;

    fn image() -> File {
        let image = tempfile::tempfile().unwrap();
        image.set_len(SECTORS * SECTOR_BYTES as u64).unwrap();
        image
    }

    fn filled(sectors: u64, value: u8) -> Vec<u8> {
        vec![value; sectors as usize * SECTOR_BYTES]
    }

    fn sector(image: &File, number: u64) -> u8 {
        let mut bytes = [0; SECTOR_BYTES];
        image.read_exact_at(&mut bytes, number * SECTOR_BYTES as u64).unwrap();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "sector {number} is torn");
        bytes[0]
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write { first: u64, sectors: u64, fua: bool },
        Flush,
        Read { first: u64, sectors: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let span = || (0..SECTORS).prop_flat_map(|first| (Just(first), 1..=SECTORS - first));
        prop_oneof![
            6 => (span(), proptest::bool::weighted(0.15))
                .prop_map(|((first, sectors), fua)| Step::Write { first, sectors, fua }),
            1 => Just(Step::Flush),
            2 => span().prop_map(|(first, sectors)| Step::Read { first, sectors }),
        ]
    }

    proptest! {
        #[test]
        fn a_sector_survives_with_a_value_it_had_since_it_was_durable(
            steps in proptest::collection::vec(step(), 0..40),
            seed in any::<u64>(),
        ) {
            let image = image();
            let mut disk = Sectors::new(image.try_clone().unwrap());
            // The model: for each sector, what it may hold after a cut, what it holds now last.
            let mut may: Vec<Vec<u8>> = vec![vec![0]; SECTORS as usize];
            for (number, step) in steps.iter().enumerate() {
                match *step {
                    Step::Write { first, sectors, fua } => {
                        let value = number as u8 + 1;
                        disk.write(first * 512, &filled(sectors, value), fua).unwrap();
                        for may in &mut may[first as usize..(first + sectors) as usize] {
                            if fua {
                                may.clear();
                            }
                            may.push(value);
                        }
                    }
                    Step::Flush => {
                        disk.flush().unwrap();
                        may.iter_mut().for_each(|may| *may = may.split_off(may.len() - 1));
                    }
                    Step::Read { first, sectors } => {
                        let mut bytes = filled(sectors, 0xff);
                        disk.read(first * 512, &mut bytes).unwrap();
                        for (bytes, may) in bytes.chunks(512).zip(&may[first as usize..]) {
                            prop_assert!(bytes.iter().all(|byte| Some(byte) == may.last()));
                        }
                    }
                }
            }
            let survivors = disk.cut(&mut fastrand::Rng::with_seed(seed)).unwrap();
            let unflushed = may.iter().filter(|may| may.len() > 1).count() as u64;
            prop_assert_eq!(survivors.unflushed, unflushed);
            prop_assert_eq!(survivors.newest + survivors.older + survivors.lost, unflushed);
            let (mut newest, mut lost) = (0, 0);
            for (number, may) in may.iter().enumerate() {
                let found = sector(&image, number as u64);
                prop_assert!(may.contains(&found), "sector {} holds {}, not one of {:?}", number, found, may);
                newest += u64::from(may.len() > 1 && may.last() == Some(&found));
                lost += u64::from(may.len() > 1 && may[0] == found);
            }
            prop_assert_eq!((survivors.newest, survivors.lost), (newest, lost));
        }
    }

    #[test]
    fn cuts_keep_and_lose_every_version() {
        let mut seen = [0; 4];
        for seed in 0..200 {
            let image = image();
            let mut disk = Sectors::new(image.try_clone().unwrap());
            for value in 1..4 {
                disk.write(512, &filled(1, value), false).unwrap();
            }
            disk.cut(&mut fastrand::Rng::with_seed(seed)).unwrap();
            seen[usize::from(sector(&image, 1))] += 1;
        }
        assert!(seen.iter().all(|times| *times > 5), "{seen:?}");
    }
}
