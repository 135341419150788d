//! The compressions that SLS takes and gives: LZ4 blocks, zstd frames, and deflate in zlib's wrapping.
//!
//! The Python SDK makes zstd frames with libzstd and inflates with zlib, so these are meant.

use std::io::{Read, Write as _};

use bytes::Bytes;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use ruzstd::decoding::StreamingDecoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use crate::wire::compression::{Lz4, lz4_decompress};

/// How a body is compressed; its name is the value of `x-log-compresstype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Lz4,
    Zstd,
    Deflate,
}

/// The body is not what its headers say.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the body does not hold the announced size in the announced compression")]
pub struct Damaged;

impl Compression {
    /// In the order in which they are preferred for answers.
    const NAMED: [Self; 3] = [Self::Lz4, Self::Zstd, Self::Deflate];

    /// `None` for a name that SLS does not know.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::NAMED.into_iter().find(|compression| compression.name() == name)
    }

    /// Empty for no compression.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Deflate => "deflate",
        }
    }

    /// The best of what a client says it takes, in `Accept-Encoding`.
    pub fn accepted(accept_encoding: &str) -> Self {
        let accepts = |compression: &Self| {
            let mut names = accept_encoding.split(',');
            names.any(|name| name.trim().eq_ignore_ascii_case(compression.name()))
        };
        Self::NAMED.into_iter().find(accepts).unwrap_or(Self::None)
    }

    /// Compresses the body of an answer.
    pub fn compress(self, raw: Vec<u8>) -> Bytes {
        match self {
            Self::None => raw.into(),
            Self::Lz4 => Lz4::default().compress(&raw),
            Self::Zstd => zstd(&raw).into(),
            Self::Deflate => {
                let mut encoder = ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder
                    .write_all(&raw)
                    .and_then(|()| encoder.finish())
                    .expect("a Vec takes what is written")
                    .into()
            }
        }
    }

    /// The bytes before compression; not copied if there was none.
    ///
    /// Fails if they are not exactly `raw_size`, and never needs much more memory than that.
    pub fn decompress(self, body: &Bytes, raw_size: usize) -> Result<Bytes, Damaged> {
        match self {
            Self::None if body.len() == raw_size => Ok(body.clone()),
            Self::None => Err(Damaged),
            Self::Lz4 => lz4_decompress(body, raw_size).map(Bytes::from).map_err(|_| Damaged),
            Self::Zstd => {
                let decoder = StreamingDecoder::new(body.as_ref()).map_err(|_| Damaged)?;
                read_exactly(decoder, raw_size)
            }
            Self::Deflate => read_exactly(ZlibDecoder::new(body.as_ref()), raw_size),
        }
    }
}

fn read_exactly(reader: impl Read, raw_size: usize) -> Result<Bytes, Damaged> {
    let mut raw = Vec::with_capacity(raw_size);
    // One more, to see whether there is more.
    reader.take(raw_size as u64 + 1).read_to_end(&mut raw).map_err(|_| Damaged)?;
    if raw.len() == raw_size { Ok(raw.into()) } else { Err(Damaged) }
}

/// A zstd frame that says its content's size, as those of libzstd do and its one-shot decoder, which
/// the SDKs use, demands; ruzstd leaves it out.
fn zstd(raw: &[u8]) -> Vec<u8> {
    let mut frame = compress_to_vec(raw, CompressionLevel::Fastest);
    let size = u32::try_from(raw.len()).expect("an answer is far below 4 GB");
    // RFC 8878, 3.1.1.1: magic number, descriptor, window. The descriptor's upper two bits tell
    // that a size of four bytes follows.
    const DESCRIPTOR: usize = 4;
    assert_eq!(frame[DESCRIPTOR], 0, "ruzstd writes a window and neither size nor checksum");
    frame[DESCRIPTOR] = 0b1000_0000;
    frame.splice(6..6, size.to_le_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Compression; 4] =
        [Compression::None, Compression::Lz4, Compression::Zstd, Compression::Deflate];

    #[test]
    fn the_best_accepted_compression_is_taken() {
        for (accepted, wanted) in [
            ("", Compression::None),
            ("gzip", Compression::None),
            ("gzip, deflate", Compression::Deflate),
            ("deflate, ZSTD", Compression::Zstd),
            ("zstd,lz4", Compression::Lz4),
        ] {
            assert_eq!(Compression::accepted(accepted), wanted, "{accepted}");
        }
        assert_eq!(Compression::of_name("snappy"), None);
        assert_eq!(Compression::of_name(""), None);
    }

    /// zlib's and libzstd's own bytes of `hello hello hello hello` (Python: zlib.compress,
    /// zstd.compress).
    #[test]
    fn foreign_bodies_are_read() {
        let raw = Bytes::from_static(b"hello hello hello hello");
        for (compression, body) in [
            (Compression::Deflate, "789ccb48cdc9c957c8402701680308b1"),
            (Compression::Zstd, "28b52ffd20176500003068656c6c6f200100994b11"),
        ] {
            let body = hex::decode(body).unwrap().into();
            assert_eq!(compression.decompress(&body, raw.len()), Ok(raw.clone()));
        }
    }

    proptest! {
        #[test]
        fn any_body_comes_back(
            pieces in proptest::collection::vec((any::<[u8; 5]>(), 1usize..300), 0..20),
        ) {
            let raw: Vec<u8> =
                pieces.iter().flat_map(|(piece, times)| piece.repeat(*times)).collect();
            for compression in ALL {
                let body = compression.compress(raw.clone());
                prop_assert_eq!(
                    compression.decompress(&body, raw.len()),
                    Ok(Bytes::from(raw.clone()))
                );
                prop_assert_eq!(compression.decompress(&body, raw.len() + 1), Err(Damaged));
                if !raw.is_empty() {
                    prop_assert_eq!(compression.decompress(&body, raw.len() - 1), Err(Damaged));
                }
            }
        }

        #[test]
        fn no_body_panics(
            body in proptest::collection::vec(any::<u8>(), 0..300),
            (at, with) in (any::<proptest::sample::Index>(), any::<u8>()),
            raw_size in 0usize..5000,
        ) {
            let body = Bytes::from(body);
            for compression in ALL {
                let _ = compression.decompress(&body, raw_size);
                // One wrong byte in a good body.
                let mut damaged = compression.compress(body.repeat(3)).to_vec();
                if !damaged.is_empty() {
                    let at = at.index(damaged.len());
                    damaged[at] = with;
                    let _ = compression.decompress(&damaged.into(), body.len() * 3);
                }
            }
        }
    }
}
