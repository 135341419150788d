//! The seal of a ledger: what tells its own tags in SLS from those that anybody else writes.
//!
//! Whoever may write to a logstore can write any tag, and the ledger's id stands in every log that
//! it has sent. So a batch bears a keyed hash (BLAKE3) of what its tags tell; the key never leaves
//! the ledger. Who copies the tags of a batch makes it seem to be there twice, and nothing else.

use std::fmt;

use uuid::Uuid;

use crate::record::digest::Digest;

/// Bytes of a seal: too many to be guessed.
const SEAL_BYTES: usize = 16;

/// A ledger's id, and the key by which it seals.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    pub ledger_id: Uuid,
    key: [u8; 32],
}

impl Seal {
    pub fn new(ledger_id: Uuid, key: [u8; 32]) -> Self {
        Self { ledger_id, key }
    }

    /// The seal of a batch of the ledger: 32 hex digits.
    pub fn of(&self, batch_id: Uuid, rows: u64, digest: Digest) -> String {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(self.ledger_id.as_bytes());
        hasher.update(batch_id.as_bytes());
        hasher.update(&rows.to_le_bytes());
        hasher.update(&digest.to_bytes());
        hex::encode(&hasher.finalize().as_bytes()[..SEAL_BYTES])
    }
}

/// Without its key.
impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seal({})", self.ledger_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_key_batch_count_or_digest_has_another_seal() {
        let (ledger, batch) = (Uuid::from_u128(7), Uuid::from_u128(8));
        let seal = Seal::new(ledger, [1; 32]);
        let digest = |first| Digest::from_bytes(std::array::from_fn(|_| first));
        let others = [
            Seal::new(ledger, [2; 32]).of(batch, 3, digest(4)),
            Seal::new(batch, [1; 32]).of(batch, 3, digest(4)),
            seal.of(ledger, 3, digest(4)),
            seal.of(batch, 4, digest(4)),
            seal.of(batch, 3, digest(5)),
        ];
        let own = seal.of(batch, 3, digest(4));
        // Seals live in SLS for years.
        assert_eq!(own, "a9f4cb022692804b09cd58f97bc8faa2");
        assert!(others.iter().all(|other| *other != own), "{others:?}");
        assert!(!format!("{seal:?}").contains("1, 1"));
    }
}
