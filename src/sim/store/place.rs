//! Where a log is stored.

/// The place of a log in its logstore; places are in the order of shards, groups and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub shard: u32,
    /// The group's number in its shard.
    pub group: usize,
    /// The log's number in its group.
    pub log: usize,
}

impl Place {
    /// The place as one number, in the same order.
    ///
    /// A body of 10 MB has less than 2^24 logs; 2^28 groups do not fit into memory.
    pub fn number(self) -> i64 {
        let (group, log) = (self.group as i64, self.log as i64);
        assert!(group < 1 << 28 && log < 1 << 24, "a number has room for {self:?}");
        i64::from(self.shard) << 52 | group << 24 | log
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_in_the_order_of_places() {
        let mut places = Vec::new();
        for shard in [0, 1, 255] {
            for group in [0, 1, (1 << 28) - 1] {
                places.extend([0, 1, (1 << 24) - 1].map(|log| Place { shard, group, log }));
            }
        }
        assert!(places.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(places.windows(2).all(|pair| pair[0].number() < pair[1].number()));
    }
}
