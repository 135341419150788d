//! A batch's digest: a sum of its logs' digests, so that neither order nor grouping matters.
//!
//! A log's digest is BLAKE3 over its time and its fields sorted by key, each length-prefixed. Tags,
//! source and nanoseconds stay out: they belong to the request, not to the row. Sums wrap at 256
//! bits; a sum cannot cancel a log out as an XOR would, and two equal logs do not vanish.

use std::fmt;

/// The digest of one log, or the sum of many. Zero is the digest of no log.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Digest([u64; 4]);

impl Digest {
    /// The digest of no log.
    pub const ZERO: Self = Self([0; 4]);

    /// The digest of a log. Sorts `fields` by key.
    pub fn of_log<'a>(time: u32, fields: &mut [(&'a [u8], &'a [u8])]) -> Self {
        fields.sort_unstable();
        LogHasher::default().of_sorted_log(time, fields.len(), fields.iter().copied())
    }

    /// Adds the logs of `other` to these.
    pub fn add(&mut self, other: Self) {
        let mut carry = false;
        for (word, plus) in self.0.iter_mut().zip(other.0) {
            let (sum, over) = word.overflowing_add(plus);
            let (sum, over_by_carry) = sum.overflowing_add(u64::from(carry));
            *word = sum;
            carry = over || over_by_carry;
        }
    }

    /// From 32 bytes, the lowest first.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().expect("a chunk has 8 bytes"));
        }
        Self(words)
    }

    /// As 32 bytes, the lowest first.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// Makes digests of many logs; what it keeps between them is memory, 8 KiB.
#[derive(Default)]
pub struct LogHasher {
    hasher: blake3::Hasher,
    /// Small pieces, gathered: BLAKE3 hashes 8 chunks of 1 KiB side by side where it gets them at
    /// once, and takes more than twice as long field by field.
    gathered: Vec<u8>,
}

const GATHERED_BYTES: usize = 8 * blake3::CHUNK_LEN;

impl LogHasher {
    /// The digest of a log whose `count` fields come sorted by key.
    pub fn of_sorted_log<'a>(
        &mut self,
        time: u32,
        count: usize,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Digest {
        self.hasher.reset();
        self.gathered.clear();
        self.gathered.reserve_exact(GATHERED_BYTES);
        self.update(&time.to_le_bytes());
        self.update(&(count as u64).to_le_bytes());
        for (key, value) in fields {
            self.update(&(key.len() as u64).to_le_bytes());
            self.update(key);
            self.update(&(value.len() as u64).to_le_bytes());
            self.update(value);
        }
        self.hasher.update(&self.gathered);
        Digest::from_bytes(*self.hasher.finalize().as_bytes())
    }

    #[inline]
    fn update(&mut self, mut piece: &[u8]) {
        while piece.len() > GATHERED_BYTES - self.gathered.len() {
            let (head, rest) = piece.split_at(GATHERED_BYTES - self.gathered.len());
            self.gathered.extend_from_slice(head);
            self.hasher.update(&self.gathered);
            self.gathered.clear();
            piece = rest;
        }
        self.gathered.extend_from_slice(piece);
    }
}

/// The logs found under one batch's tag.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    pub rows: u64,
    pub digest: Digest,
    pub groups: u32,
}

impl Sum {
    /// Adds what was found elsewhere under the same tag.
    pub fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.digest.add(other.digest);
        self.groups += other.groups;
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.to_bytes()))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_sum_carries_and_wraps() {
        let mut sum = Digest([u64::MAX, u64::MAX, 0, 7]);
        sum.add(Digest([1, 0, 0, 0]));
        assert_eq!(sum, Digest([0, 0, 1, 7]));
        let mut sum = Digest([u64::MAX; 4]);
        sum.add(Digest([1, 0, 0, 0]));
        assert_eq!(sum, Digest::default());
        let mut sum = Digest([u64::MAX, 0, 0, 0]);
        sum.add(Digest([u64::MAX, u64::MAX, 0, 0]));
        assert_eq!(sum, Digest([u64::MAX - 1, 0, 1, 0]));
    }

    #[test]
    fn what_a_digest_is_stays_as_it_is() {
        // Digests live in ledgers for years: this value, from Python's blake3, may never change.
        let mut fields: [(&[u8], &[u8]); 2] = [(b"id", b"a"), (b"error", b"")];
        assert_eq!(
            Digest::of_log(1_735_689_600, &mut fields).to_string(),
            "2db4eb344ea698a7b8e81e8d6539bfa845913ad5748a9392e8be67b8e0666cfc"
        );
    }

    #[test]
    fn the_border_between_fields_counts() {
        let one = Digest::of_log(1, &mut [(b"ab".as_slice(), b"c".as_slice())]);
        let other = Digest::of_log(1, &mut [(b"a".as_slice(), b"bc".as_slice())]);
        assert_ne!(one, other);
        assert_ne!(one, Digest::of_log(2, &mut [(b"ab".as_slice(), b"c".as_slice())]));
    }

    #[test]
    fn gathering_changes_nothing() {
        let bytes: Vec<u8> = (0..40_000_u32).map(|n| (n % 251) as u8).collect();
        let lens = [0, 1, 8_100, 8_142, 8_143, 8_144, 8_145, 8_192, 16_384, 40_000];
        let mut hasher = LogHasher::default();
        for (one, other) in lens.into_iter().flat_map(|one| lens.map(|other| (one, other))) {
            let fields = [(&b"a"[..], &bytes[..one]), (&b"b"[..], &bytes[..other])];
            let mut whole = 7_u32.to_le_bytes().to_vec();
            whole.extend(2_u64.to_le_bytes());
            for piece in fields.iter().flat_map(|(key, value)| [key, value]) {
                whole.extend((piece.len() as u64).to_le_bytes());
                whole.extend_from_slice(piece);
            }
            assert_eq!(
                hasher.of_sorted_log(7, 2, fields.into_iter()).to_bytes(),
                *blake3::hash(&whole).as_bytes(),
                "{one} and {other}"
            );
        }
    }

    proptest! {
        #[test]
        fn order_does_not_matter(parts in proptest::collection::vec(any::<[u8; 32]>(), 0..8)) {
            let sum = |parts: &mut dyn Iterator<Item = &[u8; 32]>| {
                let mut sum = Digest::default();
                parts.for_each(|part| sum.add(Digest::from_bytes(*part)));
                sum
            };
            prop_assert_eq!(sum(&mut parts.iter()), sum(&mut parts.iter().rev()));
            for part in parts {
                prop_assert_eq!(Digest::from_bytes(part).to_bytes(), part);
            }
        }
    }
}
