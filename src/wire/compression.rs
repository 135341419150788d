//! LZ4 as SLS uses it: a raw block, no frame and no size prefix.
//!
//! The raw size travels beside the body, in the header `x-log-bodyrawsize`.

use lz4_flex::block::{self, CompressTable};

/// A compressor that keeps its table from one body to the next.
pub struct Lz4 {
    table: CompressTable,
}

impl Default for Lz4 {
    fn default() -> Self {
        Self { table: CompressTable::large() }
    }
}

impl Lz4 {
    /// Compresses `raw` into one raw LZ4 block.
    pub fn compress(&mut self, raw: &[u8]) -> Vec<u8> {
        let mut body = vec![0; block::get_maximum_output_size(raw.len())];
        let len = block::compress_into_with_table(raw, &mut body, &mut self.table)
            .expect("the output has the size that lz4_flex asks for");
        body.truncate(len);
        body.shrink_to_fit();
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
    fn a_wrong_raw_size_is_an_error() {
        let body = Lz4::default().compress(b"hello hello hello hello");
        assert_eq!(lz4_decompress(&body, 22), Err(DecompressError));
        assert_eq!(lz4_decompress(&body, 24), Err(DecompressError));
    }
}
