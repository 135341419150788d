//! The numbers of idempotent writes: a shard remembers the last one of each hash key.
//!
//! A number not above the remembered one is refused. The memory is limited, and a forgotten key
//! starts anew, so a client with too many keys loses its protection: that is SLS's behaviour
//! (aliyun, Logtail configuration, appendix on ExactlyOnce: 10,000 records a shard).

use std::collections::{BTreeMap, HashMap};

/// How many keys a shard remembers.
pub const KEYS_MAX: usize = 10_000;

/// The last number of each of the keys used most recently.
#[derive(Default)]
pub struct Sequences {
    last: HashMap<u128, Last>,
    /// Keys by when they were last used.
    by_use: BTreeMap<u64, u128>,
    uses: u64,
}

struct Last {
    number: u64,
    used: u64,
}

impl Sequences {
    /// Remembers `number` for `key`; gives the last number instead if `number` is not above it.
    pub fn advance(&mut self, key: u128, number: u64) -> Result<(), u64> {
        if let Some(last) = self.last.get(&key) {
            if number <= last.number {
                return Err(last.number);
            }
            self.by_use.remove(&last.used);
        } else if self.last.len() >= KEYS_MAX
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.last.remove(&oldest);
        }
        self.uses += 1;
        self.last.insert(key, Last { number, used: self.uses });
        self.by_use.insert(self.uses, key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_higher_number_is_taken() {
        let mut sequences = Sequences::default();
        assert_eq!(sequences.advance(1, 5), Ok(()));
        assert_eq!(sequences.advance(1, 5), Err(5));
        assert_eq!(sequences.advance(1, 4), Err(5));
        assert_eq!(sequences.advance(2, 1), Ok(()));
        assert_eq!(sequences.advance(1, 9), Ok(()));
        assert_eq!(sequences.advance(1, 6), Err(9));
    }

    #[test]
    fn the_key_unused_for_longest_is_forgotten() {
        let mut sequences = Sequences::default();
        for key in 0..KEYS_MAX as u128 {
            sequences.advance(key, 7).unwrap();
        }
        sequences.advance(0, 8).unwrap();
        sequences.advance(u128::MAX, 1).unwrap();
        assert_eq!(sequences.advance(0, 8), Err(8), "used since, so remembered");
        assert_eq!(sequences.advance(2, 7), Err(7));
        assert_eq!(sequences.advance(1, 1), Ok(()), "the oldest is forgotten");
        assert_eq!(sequences.last.len(), KEYS_MAX);
        assert_eq!(sequences.by_use.len(), KEYS_MAX);
    }
}
