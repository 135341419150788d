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

    /// The place as SLS's row id, which clients take as it is (aliyun, DeleteLogs: `0|1000001|638732499`).
    pub fn row_id(self) -> String {
        format!("{}|{}|{}", self.shard, self.group, self.log)
    }

    /// `None` if `text` is no row id.
    pub fn of_row_id(text: &str) -> Option<Self> {
        let mut numbers = text.split('|');
        let (shard, group) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        let log = numbers.next()?.parse().ok()?;
        numbers.next().is_none().then_some(Self { shard, group, log })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_ids_come_back() {
        let place = Place { shard: 3, group: 1_000_001, log: 7 };
        assert_eq!(Place::of_row_id(&place.row_id()), Some(place));
        for text in ["", "1", "1|2", "1|2|x", "1|2|3|4", "-1|2|3"] {
            assert_eq!(Place::of_row_id(text), None, "{text}");
        }
    }

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
