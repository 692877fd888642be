//! Which shard owns a partition: partitions map to 256 stored virtual shards, these to the shards there are.
//!
//! A topic's first virtual shard is stored with it; its partitions follow one by one, round and round. With another
//! number of shards the virtual ones map elsewhere: no file moves, and nothing else is stored.
//!
//! Topic of 4 partitions, first virtual shard 254: partitions 0 to 3 lie in virtual shards 254, 255, 0, 1; with three
//! shards that is shards 2, 0, 0, 1.

use crate::types::ShardId;

/// Virtual shards; also the most shards an engine has.
pub const VIRTUAL_SHARDS: u16 = 256;

/// The virtual shard of partition `index` of a topic that begins at `first_virtual`.
#[must_use]
pub fn virtual_shard(first_virtual: u8, index: i32) -> u8 {
    (i64::from(first_virtual) + i64::from(index)).rem_euclid(i64::from(VIRTUAL_SHARDS)) as u8
}

/// The shard that owns a virtual shard, of `shards`.
#[must_use]
pub fn owner(virtual_shard: u8, shards: u16) -> ShardId {
    assert!((1..=VIRTUAL_SHARDS).contains(&shards), "{shards} shards");
    ShardId(u16::from(virtual_shard) % shards)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_go_round_and_every_shard_gets_its_share() {
        let owners = |shards| (0..4).map(|p| owner(virtual_shard(254, p), shards).0).collect::<Vec<_>>();
        assert_eq!(owners(3), [2, 0, 0, 1]);
        assert_eq!(owners(1), [0, 0, 0, 0]);
        for shards in 1..=VIRTUAL_SHARDS {
            let mut owned = vec![0; usize::from(shards)];
            (0..256).for_each(|p| owned[usize::from(owner(virtual_shard(17, p), shards).0)] += 1);
            let (least, most) = (owned.iter().min().unwrap(), owned.iter().max().unwrap());
            assert!(*least > 0 && most - least <= 1, "{shards} shards: {least} to {most}");
        }
    }
}
