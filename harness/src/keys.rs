//! Which keys records carry, and which partition a batch goes to.
//!
//! A producer sends a batch to one partition, so the partition is drawn first, once a batch: that of a key drawn
//! from the distribution (key modulo partitions). Skewed keys thus make skewed partitions, as they do in real life.
//! Records of the batch then draw keys among those of that partition. Without keys, batches go round robin.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The keys of a load.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyDistribution {
    /// No keys: the key is null.
    None,
    /// This many keys, each as likely.
    Uniform(u64),
    /// This many keys, the k-th with a weight of 1/k.
    Zipf(u64),
}

/// Bytes of every key: `k` and fifteen hexadecimal digits, so that all records of a load have one shape.
pub const KEY_BYTES: usize = 16;

/// One producer's stream of partitions and keys.
#[derive(Clone, Debug)]
pub struct Keys {
    distribution: KeyDistribution,
    partitions: u64,
    next_partition: u64,
    random: fastrand::Rng,
}

impl Keys {
    /// A stream of its own for each producer: same seed, same stream.
    ///
    /// # Panics
    /// When there is no partition, or fewer keys than partitions: validation refuses both.
    #[must_use]
    pub fn new(distribution: KeyDistribution, partitions: u32, seed: u64, producer: u32) -> Keys {
        let partitions = u64::from(partitions);
        assert!(partitions > 0, "a load has at least one partition");
        if let Some(keys) = distribution.count() {
            assert!(keys >= partitions, "{keys} keys cannot cover {partitions} partitions");
        }
        let random = fastrand::Rng::with_seed(seed ^ (u64::from(producer) << 32) ^ 0x6b65_7973);
        Keys { distribution, partitions, next_partition: u64::from(producer) % partitions, random }
    }

    /// The partition of the next batch.
    pub fn partition(&mut self) -> u32 {
        let partition = match self.draw() {
            Some(key) => key % self.partitions,
            None => {
                let partition = self.next_partition;
                self.next_partition = (partition + 1) % self.partitions;
                partition
            }
        };
        u32::try_from(partition).expect("below a count that came from a u32")
    }

    /// The key of the next record in a batch for `partition`; `None` where the load has no keys.
    pub fn key(&mut self, partition: u32) -> Option<[u8; KEY_BYTES]> {
        let drawn = self.draw()?;
        // The key of this partition nearest in rank to the one drawn: the hot keys of every partition stay hot.
        let mut key = drawn - drawn % self.partitions + u64::from(partition);
        if key >= self.distribution.count()? {
            key -= self.partitions;
        }
        Some(written(key))
    }

    fn draw(&mut self) -> Option<u64> {
        match self.distribution {
            KeyDistribution::None => None,
            KeyDistribution::Uniform(keys) => Some(self.random.u64(0..keys)),
            KeyDistribution::Zipf(keys) => Some(self.draw_zipf(keys)),
        }
    }

    /// Rejection under the continuous curve 1/x: the step at k has weight 1/k, the curve over [k, k+1) has
    /// ln((k+1)/k). Their ratio is at most 1/ln 2 (at k = 1), so about 1.4 draws give one key.
    fn draw_zipf(&mut self, keys: u64) -> u64 {
        let span = ((keys + 1) as f64).ln();
        loop {
            let rank = (self.random.f64() * span).exp().floor().clamp(1.0, keys as f64);
            let accepted = std::f64::consts::LN_2 / (rank * (1.0 / rank).ln_1p());
            if self.random.f64() < accepted {
                return rank as u64 - 1;
            }
        }
    }
}

impl KeyDistribution {
    /// How many keys there are, if there are any.
    #[must_use]
    pub fn count(self) -> Option<u64> {
        match self {
            KeyDistribution::None => None,
            KeyDistribution::Uniform(keys) | KeyDistribution::Zipf(keys) => Some(keys),
        }
    }
}

impl FromStr for KeyDistribution {
    type Err = String;

    fn from_str(text: &str) -> Result<KeyDistribution, String> {
        let refuse = || format!("`{text}` is not a key distribution: write none, uniform:1000 or zipf:1000");
        if text == "none" {
            return Ok(KeyDistribution::None);
        }
        let (name, keys) = text.split_once(':').ok_or_else(refuse)?;
        let keys = keys.parse().map_err(|_| refuse())?;
        match name {
            "uniform" => Ok(KeyDistribution::Uniform(keys)),
            "zipf" => Ok(KeyDistribution::Zipf(keys)),
            _ => Err(refuse()),
        }
    }
}

impl fmt::Display for KeyDistribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyDistribution::None => f.write_str("none"),
            KeyDistribution::Uniform(keys) => write!(f, "uniform:{keys}"),
            KeyDistribution::Zipf(keys) => write!(f, "zipf:{keys}"),
        }
    }
}

fn written(key: u64) -> [u8; KEY_BYTES] {
    let mut bytes = [b'k'; KEY_BYTES];
    for (index, byte) in bytes[1..].iter_mut().rev().enumerate() {
        *byte = b"0123456789abcdef"[((key >> (4 * index)) & 15) as usize];
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_keys_batches_go_round_robin() {
        let mut keys = Keys::new(KeyDistribution::None, 3, 1, 1);
        assert_eq!([keys.partition(), keys.partition(), keys.partition(), keys.partition()], [1, 2, 0, 1]);
        assert_eq!(keys.key(0), None);
    }

    #[test]
    fn keys_belong_to_the_partition_of_their_batch() {
        for distribution in [KeyDistribution::Uniform(10), KeyDistribution::Zipf(10)] {
            let mut keys = Keys::new(distribution, 4, 7, 0);
            for _ in 0..1000 {
                let partition = keys.partition();
                let key = keys.key(partition).unwrap();
                let number = u64::from_str_radix(std::str::from_utf8(&key[1..]).unwrap(), 16).unwrap();
                assert!(number < 10, "key {number}");
                assert_eq!(number % 4, u64::from(partition));
            }
        }
    }

    #[test]
    fn zipf_weights_fall_as_one_over_rank() {
        let mut keys = Keys::new(KeyDistribution::Zipf(100), 1, 3, 0);
        let draws = 200_000;
        let mut counts = [0u32; 100];
        for _ in 0..draws {
            counts[keys.draw().unwrap() as usize] += 1;
        }
        let harmonic: f64 = (1..=100).map(|rank| 1.0 / f64::from(rank)).sum();
        for rank in [1u32, 2, 5, 10, 50] {
            let wanted = f64::from(draws) / harmonic / f64::from(rank);
            let got = f64::from(counts[rank as usize - 1]);
            assert!(
                (got - wanted).abs() < 5.0 * wanted.sqrt(),
                "rank {rank}: {got} draws, {wanted} expected"
            );
        }
    }

    #[test]
    fn same_seed_same_stream() {
        let stream = |seed| {
            let mut keys = Keys::new(KeyDistribution::Uniform(1000), 8, seed, 2);
            (0..50).map(|_| keys.partition()).collect::<Vec<_>>()
        };
        assert_eq!(stream(5), stream(5));
        assert_ne!(stream(5), stream(6));
    }

    #[test]
    fn distributions_are_read_and_written() {
        for text in ["none", "uniform:1000", "zipf:77"] {
            assert_eq!(text.parse::<KeyDistribution>().unwrap().to_string(), text);
        }
        for bad in ["", "zipf", "zipf:", "zipf:-1", "normal:3"] {
            assert!(bad.parse::<KeyDistribution>().is_err(), "{bad}");
        }
    }
}
