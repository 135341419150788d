//! The numbers of idempotent writes: a shard remembers the last one of each hash key.
//!
//! A number not above the remembered one is refused. The memory is limited, and a forgotten key
//! starts anew, so a client with too many keys loses its protection: that is SLS's behaviour
//! (aliyun, Logtail configuration, appendix on ExactlyOnce: 10,000 records a shard).

use std::collections::{BTreeMap, HashMap};

/// The last number of each of the keys used most recently.
#[derive(Default, Clone)]
pub struct Sequences {
    last: HashMap<u128, Last>,
    /// Keys by when they were last used.
    by_use: BTreeMap<u64, u128>,
    uses: u64,
}

#[derive(Clone)]
struct Last {
    number: u64,
    used: u64,
}

impl Sequences {
    /// The last number of `key` if `number` is not above it, and so used up.
    pub fn used_up(&self, key: u128, number: u64) -> Option<u64> {
        self.last.get(&key).map(|last| last.number).filter(|last| number <= *last)
    }

    /// Remembers `number` for `key`, and at most `keys_max` keys (at least 1).
    pub fn record(&mut self, key: u128, number: u64, keys_max: usize) {
        if let Some(last) = self.last.remove(&key) {
            self.by_use.remove(&last.used);
        }
        while self.last.len() >= keys_max
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.last.remove(&oldest);
        }
        self.uses += 1;
        self.last.insert(key, Last { number, used: self.uses });
        self.by_use.insert(self.uses, key);
    }

    /// Takes over what `other` remembers; what both have, with the higher number.
    pub fn join(&mut self, other: &Self, keys_max: usize) {
        for key in other.by_use.values() {
            let number = other.last[key].number;
            if self.used_up(*key, number).is_none() {
                self.record(*key, number, keys_max);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS_MAX: usize = 10_000;

    #[test]
    fn only_a_higher_number_is_new() {
        let mut sequences = Sequences::default();
        assert_eq!(sequences.used_up(1, 0), None);
        sequences.record(1, 5, KEYS_MAX);
        assert_eq!(sequences.used_up(1, 5), Some(5));
        assert_eq!(sequences.used_up(1, 4), Some(5));
        assert_eq!(sequences.used_up(1, 6), None);
        assert_eq!(sequences.used_up(2, 1), None);
        sequences.record(1, 9, KEYS_MAX);
        assert_eq!(sequences.used_up(1, 6), Some(9));
    }

    #[test]
    fn the_key_unused_for_longest_is_forgotten() {
        let mut sequences = Sequences::default();
        for key in 0..KEYS_MAX as u128 {
            sequences.record(key, 7, KEYS_MAX);
        }
        sequences.record(0, 8, KEYS_MAX);
        sequences.record(u128::MAX, 1, KEYS_MAX);
        assert_eq!(sequences.used_up(0, 8), Some(8), "used since, so remembered");
        assert_eq!(sequences.used_up(2, 7), Some(7));
        assert_eq!(sequences.used_up(1, 1), None, "the oldest is forgotten");
        assert_eq!((sequences.last.len(), sequences.by_use.len()), (KEYS_MAX, KEYS_MAX));
        sequences.record(3, 9, 2);
        assert_eq!((sequences.last.len(), sequences.by_use.len()), (2, 2), "a lower limit");
    }

    #[test]
    fn joined_memories_know_the_higher_number() {
        let (mut left, mut right) = (Sequences::default(), Sequences::default());
        left.record(1, 5, KEYS_MAX);
        left.record(2, 5, KEYS_MAX);
        right.record(2, 6, KEYS_MAX);
        right.record(1, 4, KEYS_MAX);
        right.record(3, 1, KEYS_MAX);
        left.join(&right, KEYS_MAX);
        let numbers = [1, 2, 3].map(|key| left.used_up(key, 0));
        assert_eq!(numbers, [Some(5), Some(6), Some(1)]);
    }
}
