//! PutLogs: checks a body as SLS does and appends it, whole or not at all.

pub mod admission;

use crate::sim::admin::hash_key;
use crate::sim::answer::{Code, Refusal};
use crate::sim::compression::{Compression, Damaged};
use crate::sim::http::Request;
use crate::sim::put::admission::admit;
use crate::sim::store::logstore::{Logstore, Target};
use crate::sim::store::shard::{Scene, Write};
use crate::sim::switch::Switches;
use bytes::Bytes;

/// What a request added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Where it was appended.
    pub shard: u32,
    pub logs: usize,
    pub raw_bytes: usize,
}

/// In which way PutLogs is served.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// By hash key.
    pub routed: bool,
    /// Nothing is decoded and no log is stored; only sequence numbers are kept.
    pub count_only: bool,
    /// Where a group without hash key goes, instead of taking turns: when it is served again.
    pub shard: Option<u32>,
}

/// Serves PutLogs.
pub fn put_logs(
    logstore: &Logstore,
    request: &Request,
    manner: Manner,
    scene: Scene<'_>,
) -> Result<Stored, Refusal> {
    let target = match manner.shard {
        _ if manner.routed => routed_target(request)?,
        Some(shard) => Target::Shard(shard),
        None => Target::Balanced,
    };
    let (compression, raw_size) = envelope(request, scene.switches)?;
    let mut write = Write { raw_bytes: raw_size as u64, ..Write::default() };
    let mut logs = 0;
    if manner.count_only {
        check_size(&request.body, compression, raw_size)?;
    } else {
        let raw = decompress(&request.body, compression, raw_size)?;
        (write.groups, logs) = admit(raw, scene)?;
    }
    let shard = logstore.append(target, write, scene)?;
    Ok(Stored { shard, logs, raw_bytes: raw_size })
}

/// The shard and number that `key` and `seqid` ask for.
fn routed_target(request: &Request) -> Result<Target, Refusal> {
    let key = hash_key(request.param("key").unwrap_or_default())?;
    let sequence = request.param("seqid").map(|text| {
        let message = || format!("seqid={text} is not a number");
        text.parse().map_err(|_| Refusal::new(Code::ParameterInvalid, message()))
    });
    Ok(Target::Key { key, sequence: sequence.transpose()? })
}

/// What the headers say of the body: how it is compressed and its size before.
fn envelope(request: &Request, switches: &Switches) -> Result<(Compression, usize), Refusal> {
    let refuse = |code, message: &str| Err(Refusal::new(code, message));
    match request.header("content-type") {
        None => return refuse(Code::MissingContentType, "Content-Type is required"),
        Some("application/x-protobuf") => {}
        Some(_) => return refuse(Code::InvalidContentType, "only application/x-protobuf is taken"),
    }
    if request.header("x-log-mode").is_some() {
        return refuse(Code::ParameterInvalid, "x-log-mode is not imitated");
    }
    let compression = request.header("x-log-compresstype");
    if compression.is_some_and(|name| switches.compression_refused.iter().any(|no| no == name)) {
        return refuse(Code::InvalidCompressType, "this compression is not taken");
    }
    let Some(compression) = compression.map_or(Some(Compression::None), Compression::of_name)
    else {
        return refuse(Code::InvalidCompressType, "only lz4, zstd, deflate or none is taken");
    };
    let Some(raw_size) = request.header("x-log-bodyrawsize") else {
        return refuse(Code::MissingBodyRawSize, "x-log-bodyrawsize is required");
    };
    let Ok(raw_size) = raw_size.parse::<usize>() else {
        return refuse(Code::InvalidBodyRawSize, "x-log-bodyrawsize is not a number");
    };
    if raw_size > switches.raw_bytes_max {
        let message = format!("the body is over {} bytes uncompressed", switches.raw_bytes_max);
        return refuse(Code::PostBodyTooLarge, &message);
    }
    Ok((compression, raw_size))
}

fn decompress(body: &Bytes, compression: Compression, raw_size: usize) -> Result<Bytes, Refusal> {
    compression.decompress(body, raw_size).map_err(|damaged| match compression {
        Compression::None => {
            let message = format!("the body has {} bytes, not {raw_size}", body.len());
            Refusal::new(Code::InvalidBodyRawSize, message)
        }
        _ => Refusal::new(Code::PostBodyUncompressError, damaged.to_string()),
    })
}

/// Checks that `body` has `raw_size` bytes before compression; LZ4 without decompressing it.
fn check_size(body: &Bytes, compression: Compression, raw_size: usize) -> Result<(), Refusal> {
    if compression != Compression::Lz4 {
        return decompress(body, compression, raw_size).map(drop);
    }
    if lz4_size(body) == Some(raw_size) {
        return Ok(());
    }
    Err(Refusal::new(Code::PostBodyUncompressError, Damaged.to_string()))
}

/// How many bytes an LZ4 block holds, from its sequences' lengths alone; `None` if it is cut short.
///
/// A sequence is a token (two lengths of four bits), literals, and a match (two bytes of offset);
/// a length of 15 goes on in bytes up to the first that is not 255. The last has no match.
fn lz4_size(mut block: &[u8]) -> Option<usize> {
    let mut size = 0usize;
    loop {
        let (&token, rest) = block.split_first()?;
        block = rest;
        let literals = lz4_length(token >> 4, &mut block)?;
        block = block.get(literals..)?;
        size = size.checked_add(literals)?;
        if block.is_empty() {
            return Some(size);
        }
        block = block.get(2..)?;
        // The shortest match has four bytes.
        size = size.checked_add(lz4_length(token & 15, &mut block)?.checked_add(4)?)?;
    }
}

fn lz4_length(nibble: u8, block: &mut &[u8]) -> Option<usize> {
    let mut length = usize::from(nibble);
    if nibble == 15 {
        loop {
            let (&byte, rest) = block.split_first()?;
            *block = rest;
            length = length.checked_add(usize::from(byte))?;
            if byte != 255 {
                break;
            }
        }
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::compression::Lz4;
    use proptest::prelude::*;

    #[test]
    fn a_hash_key_has_32_digits() {
        let target = |query: &str| {
            let request = Request::for_test(&format!("/x?{query}"), &[], b"");
            routed_target(&request).map_err(|refusal| refusal.code)
        };
        let key = "0123456789abcdefFFFFFFFFFFFFFFFF";
        let number = 0x0123_4567_89ab_cdef_ffff_ffff_ffff_ffff;
        let plain = Target::Key { key: number, sequence: None };
        assert_eq!(target(&format!("key={key}")), Ok(plain));
        let numbered = Target::Key { key: number, sequence: Some(u64::MAX) };
        assert_eq!(target(&format!("key={key}&seqid={}", u64::MAX)), Ok(numbered));
        for query in [
            "",
            "key=5F",
            "key=%2B123456789abcdefFFFFFFFFFFFFFFFF",
            &format!("key={key}&seqid=x"),
            &format!("key={key}&seqid=-1"),
        ] {
            assert_eq!(target(query), Err("ParameterInvalid".to_owned()), "{query}");
        }
    }

    proptest! {
        #[test]
        fn the_size_of_a_block_is_known_without_decompressing(
            pieces in proptest::collection::vec(("[a-c]{1,30}", 1usize..200), 0..40),
        ) {
            let raw: String = pieces.iter().map(|(text, times)| text.repeat(*times)).collect();
            let body = Lz4::default().compress(raw.as_bytes());
            prop_assert_eq!(lz4_size(&body), Some(raw.len()));
            prop_assert_ne!(lz4_size(&body[..body.len() - 1]), Some(raw.len()));
        }

        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = lz4_size(&body);
        }
    }
}
