//! A set of a batch's rows, by their place in its list of ids: one bit each.

/// Which rows of a batch; bit `n`, the most significant first, is row `n`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowSet {
    bits: Vec<u8>,
    rows: usize,
}

impl RowSet {
    /// None of `rows` rows.
    pub fn empty(rows: usize) -> Self {
        Self { bits: vec![0; rows.div_ceil(8)], rows }
    }

    /// As the ledger keeps it; `None` is the empty set. Bits beyond `rows` count for nothing.
    pub fn from_bytes(bytes: Option<&[u8]>, rows: usize) -> Self {
        let mut set = Self::empty(rows);
        for place in 0..rows {
            let byte = bytes.and_then(|bytes| bytes.get(place / 8));
            if byte.is_some_and(|byte| byte & bit(place) != 0) {
                set.insert(place);
            }
        }
        set
    }

    /// As the ledger keeps it: `None` for the empty set.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        (!self.is_empty()).then(|| self.bits.clone())
    }

    /// Adds row `place`, which must be below the number of rows.
    pub fn insert(&mut self, place: usize) {
        assert!(place < self.rows, "row {place} of {}", self.rows);
        self.bits[place / 8] |= bit(place);
    }

    /// Takes row `place` out.
    pub fn remove(&mut self, place: usize) {
        assert!(place < self.rows, "row {place} of {}", self.rows);
        self.bits[place / 8] &= !bit(place);
    }

    pub fn contains(&self, place: usize) -> bool {
        place < self.rows && self.bits[place / 8] & bit(place) != 0
    }

    /// How many rows are in it.
    pub fn len(&self) -> usize {
        self.bits.iter().map(|byte| byte.count_ones() as usize).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|byte| *byte == 0)
    }

    /// The places of its rows, in order.
    pub fn places(&self) -> impl Iterator<Item = usize> {
        (0..self.rows).filter(|place| self.contains(*place))
    }
}

fn bit(place: usize) -> u8 {
    0x80 >> (place % 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_put_in_comes_back_from_the_ledger(
            rows in 0usize..70, picks in proptest::collection::vec(0usize..70, 0..20),
        ) {
            let mut set = RowSet::empty(rows);
            let picks: std::collections::BTreeSet<_> =
                picks.into_iter().filter(|place| *place < rows).collect();
            for place in &picks {
                set.insert(*place);
            }
            prop_assert_eq!(set.len(), picks.len());
            let kept = set.to_bytes();
            prop_assert_eq!(kept.is_none(), picks.is_empty());
            let back = RowSet::from_bytes(kept.as_deref(), rows);
            prop_assert_eq!(&back, &set);
            prop_assert!(back.places().eq(picks.iter().copied()));
            for place in &picks {
                set.remove(*place);
            }
            prop_assert!(set.is_empty());
        }
    }

    #[test]
    fn the_first_row_is_the_highest_bit() {
        let mut set = RowSet::empty(9);
        set.insert(0);
        set.insert(8);
        assert_eq!(set.to_bytes().unwrap(), [0x80, 0x80]);
        assert!(!RowSet::from_bytes(Some(&[0xff, 0xff]), 9).contains(9));
        assert_eq!(RowSet::from_bytes(Some(&[0xff, 0xff]), 9).len(), 9);
    }
}
