//! Ids of rows as the ledger keeps them: packed, 16 bytes each, and as numbers for its index.

use uuid::Uuid;

/// The ids that a batch's `row_ids` hold.
pub(in crate::ledger) fn ids(row_ids: &[u8]) -> impl Iterator<Item = Uuid> {
    row_ids
        .chunks_exact(16)
        .map(|id| Uuid::from_bytes(id.try_into().expect("a chunk has 16 bytes")))
}

/// A row id's first eight bytes as a signed number in the same order: Postgres has no range of
/// uuid, and a range of int8 is all that the search for overlapping batches needs.
pub(in crate::ledger) fn id_number(id: Uuid) -> i64 {
    // Postgres cannot make a range that includes its largest number.
    (id.as_u64_pair().0 ^ (1 << 63)).cast_signed().min(i64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_numbers_keep_the_order_of_ids() {
        let ids = [0u128, 1 << 64, (1 << 127) - 1, 1 << 127, u128::MAX].map(Uuid::from_u128);
        let numbers = ids.map(id_number);
        assert!(numbers.is_sorted());
        assert_eq!((numbers[0], numbers[4]), (i64::MIN, i64::MAX - 1));
    }
}
