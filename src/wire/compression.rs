//! LZ4 as SLS uses it: a raw block, no frame and no size prefix.
//!
//! The raw size travels beside the body, in the header `x-log-bodyrawsize`.

use bytes::Bytes;
use lz4_flex::block::{self, CompressTable};

/// The buffer of a compressor gives back memory beyond it: a common batch fits.
const KEEP_BYTES: usize = 4 << 20;

/// A compressor that keeps its table and its buffer from one body to the next.
pub struct Lz4 {
    table: CompressTable,
    buffer: Vec<u8>,
}

impl Default for Lz4 {
    fn default() -> Self {
        Self { table: CompressTable::large(), buffer: Vec::new() }
    }
}

impl Lz4 {
    /// Compresses `raw` into one raw LZ4 block.
    pub fn compress(&mut self, raw: &[u8]) -> Bytes {
        let len_max = block::get_maximum_output_size(raw.len());
        if self.buffer.len() < len_max {
            self.buffer.resize(len_max, 0);
        }
        let len = block::compress_into_with_table(raw, &mut self.buffer, &mut self.table)
            .expect("the output has the size that lz4_flex asks for");
        let body = Bytes::copy_from_slice(&self.buffer[..len]);
        self.buffer.truncate(KEEP_BYTES);
        self.buffer.shrink_to(KEEP_BYTES);
        body
    }
}

/// Gives back the bytes of one raw LZ4 block.
///
/// Fails if the block is damaged or does not hold exactly `raw_size` bytes.
pub fn lz4_decompress(body: &[u8], raw_size: usize) -> Result<Vec<u8>, DecompressError> {
    let mut raw = vec![0; raw_size];
    let len = block::decompress_into(body, &mut raw).map_err(|_| DecompressError)?;
    if len == raw_size { Ok(raw) } else { Err(DecompressError) }
}

/// The body is not an LZ4 block of the announced size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the body is not an LZ4 block of the announced size")]
pub struct DecompressError;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_body_comes_back(raw in proptest::collection::vec(any::<u8>(), 0..70_000)) {
            let mut lz4 = Lz4::default();
            lz4.compress(b"another body before, because the table is kept");
            let body = lz4.compress(&raw);
            prop_assert_eq!(lz4_decompress(&body, raw.len()), Ok(raw));
        }

        #[test]
        fn damaged_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200),
                                      raw_size in 0usize..4096) {
            let _ = lz4_decompress(&body, raw_size);
        }
    }

    #[test]
    fn a_large_body_comes_back_and_its_memory_is_given_back() {
        let mut lz4 = Lz4::default();
        let raw: Vec<u8> = (0..9_000_000u32).map(|i| (i % 251) as u8 ^ (i / 1000) as u8).collect();
        let body = lz4.compress(&raw);
        assert!(lz4.buffer.capacity() <= 2 * KEEP_BYTES);
        assert_eq!(lz4_decompress(&body, raw.len()).as_deref(), Ok(raw.as_slice()));
        assert_eq!(lz4_decompress(&lz4.compress(b"small"), 5).as_deref(), Ok(b"small".as_slice()));
    }

    #[test]
    fn a_wrong_raw_size_is_an_error() {
        let body = Lz4::default().compress(b"hello hello hello hello");
        assert_eq!(lz4_decompress(&body, 22), Err(DecompressError));
        assert_eq!(lz4_decompress(&body, 24), Err(DecompressError));
    }
}
