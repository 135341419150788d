//! PutLogs: judges a body as SLS does and appends it, whole or not at all.

use bytes::Bytes;
use prost::Message as _;

use crate::sim::answer::{Code, Refusal};
use crate::sim::http::Request;
use crate::sim::store::logstore::{Logstore, Target};
use crate::wire::compression::lz4_decompress;
use crate::wire::log_group::LogGroupView;
use crate::wire::proto;

/// The largest body before compression (aliyun, PutLogs: 10 MB).
pub const RAW_BYTES_MAX: usize = 10 * 1024 * 1024;

/// The most logs in one group (the Java and Go producers' limit; no page of the service has one
/// that is not contradicted by another).
pub const LOGS_MAX: usize = 40_960;

/// What a request added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub logs: usize,
    pub raw_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Lz4,
}

/// Serves PutLogs. `routed` is the form that names a hash key. With `count_only` nothing is decoded
/// and no log is stored; only sequence numbers are kept.
pub fn put_logs(
    logstore: &Logstore,
    request: &Request,
    routed: bool,
    count_only: bool,
    now_s: i64,
) -> Result<Stored, Refusal> {
    let target = if routed { routed_target(request)? } else { Target::Balanced };
    let (compression, raw_size) = envelope(request)?;
    if count_only {
        check_size(&request.body, compression, raw_size)?;
        logstore.append(target, None, now_s)?;
        return Ok(Stored { logs: 0, raw_bytes: raw_size });
    }
    let raw = decompress(&request.body, compression, raw_size)?;
    let logs = check_group(&raw)?;
    logstore.append(target, Some(raw), now_s)?;
    Ok(Stored { logs, raw_bytes: raw_size })
}

/// The shard and number that `key` and `seqid` ask for.
fn routed_target(request: &Request) -> Result<Target, Refusal> {
    let invalid = |message| Refusal::new(Code::ParameterInvalid, message);
    let key = request.param("key").unwrap_or_default();
    if key.len() != 32 || !key.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(invalid(format!("key={key} does not have 32 hexadecimal digits")));
    }
    let key = u128::from_str_radix(key, 16).expect("32 hexadecimal digits are 128 bits");
    let sequence = match request.param("seqid") {
        None => None,
        Some(text) => {
            let number = text.parse();
            Some(number.map_err(|_| invalid(format!("seqid={text} is not a number")))?)
        }
    };
    Ok(Target::Key { key, sequence })
}

/// What the headers say of the body: how it is compressed and its size before.
fn envelope(request: &Request) -> Result<(Compression, usize), Refusal> {
    let refuse = |code, message: &str| Err(Refusal::new(code, message));
    match request.header("content-type") {
        None => return refuse(Code::MissingContentType, "Content-Type is required"),
        Some("application/x-protobuf") => {}
        Some(_) => return refuse(Code::InvalidContentType, "only application/x-protobuf is taken"),
    }
    if request.header("x-log-mode").is_some() {
        return refuse(Code::ParameterInvalid, "x-log-mode is not imitated");
    }
    let compression = match request.header("x-log-compresstype") {
        None => Compression::None,
        Some("lz4") => Compression::Lz4,
        Some(_) => return refuse(Code::InvalidCompressType, "only lz4 or no compression is taken"),
    };
    let Some(raw_size) = request.header("x-log-bodyrawsize") else {
        return refuse(Code::MissingBodyRawSize, "x-log-bodyrawsize is required");
    };
    let Ok(raw_size) = raw_size.parse::<usize>() else {
        return refuse(Code::InvalidBodyRawSize, "x-log-bodyrawsize is not a number");
    };
    if raw_size > RAW_BYTES_MAX {
        return refuse(Code::PostBodyTooLarge, "the body is larger than 10 MB uncompressed");
    }
    Ok((compression, raw_size))
}

/// The body before compression; not copied if it was not compressed.
fn decompress(body: &Bytes, compression: Compression, raw_size: usize) -> Result<Bytes, Refusal> {
    match compression {
        Compression::None => {
            check_size(body, compression, raw_size)?;
            Ok(body.clone())
        }
        Compression::Lz4 => {
            let raw = lz4_decompress(body, raw_size);
            raw.map(Bytes::from)
                .map_err(|error| Refusal::new(Code::PostBodyUncompressError, error.to_string()))
        }
    }
}

/// Checks that `body` has `raw_size` bytes before compression, without decompressing it.
fn check_size(body: &[u8], compression: Compression, raw_size: usize) -> Result<(), Refusal> {
    match compression {
        Compression::None if body.len() != raw_size => {
            let message = format!("the body has {} bytes, not {raw_size}", body.len());
            Err(Refusal::new(Code::InvalidBodyRawSize, message))
        }
        Compression::Lz4 if lz4_size(body) != Some(raw_size) => {
            let message = "the body is not an LZ4 block of the announced size";
            Err(Refusal::new(Code::PostBodyUncompressError, message))
        }
        _ => Ok(()),
    }
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

/// Judges a LogGroup as SLS does; gives how many logs it has.
///
/// The view sees missing required fields, which prost takes for defaults. prost sees the fields
/// that the view passes over, and is not the code that wrote the group.
fn check_group(raw: &[u8]) -> Result<usize, Refusal> {
    let invalid = |what: String| Refusal::new(Code::PostBodyInvalid, what);
    let group = LogGroupView::parse(raw).map_err(|error| invalid(error.to_string()))?;
    if group.logs.iter().any(|log| log.time.is_none()) {
        return Err(invalid("a log has no Time".to_owned()));
    }
    if group.logs.len() > LOGS_MAX {
        let message = format!("{} logs are more than {LOGS_MAX}", group.logs.len());
        return Err(Refusal::new(Code::PostBodyTooLarge, message));
    }
    let pairs = || group.tags.iter().chain(group.logs.iter().flat_map(|log| &log.contents));
    let mut texts = [group.topic, group.source]
        .into_iter()
        .flatten()
        .chain(pairs().flat_map(|(k, v)| [*k, *v]));
    if texts.any(|text| std::str::from_utf8(text).is_err()) {
        let message = "Non-UTF8 characters are in logs.";
        return Err(Refusal::new(Code::InvalidEncoding, message));
    }
    let mut keys = Vec::new();
    for log in &group.logs {
        keys.clear();
        keys.extend(log.contents.iter().map(|(key, _)| *key));
        keys.sort_unstable();
        if keys.first().is_some_and(|key| key.is_empty()) {
            return Err(Refusal::new(Code::InvalidKey, "a key is empty"));
        }
        if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
            let message = format!("key {} stands twice in a log", String::from_utf8_lossy(pair[0]));
            return Err(Refusal::new(Code::InvalidKey, message));
        }
    }
    proto::LogGroup::decode(raw).map_err(|error| invalid(error.to_string()))?;
    Ok(group.logs.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::compression::Lz4;
    use crate::wire::log_group::LogGroupWriter;
    use proptest::prelude::*;

    fn group(contents: &[(&str, &[u8])], logs: usize) -> Vec<u8> {
        let mut writer = LogGroupWriter::default();
        for _ in 0..logs {
            writer.begin_log(1, 0);
            for (key, value) in contents {
                writer.field(key, value);
            }
            writer.end_log();
        }
        writer.bytes().to_vec()
    }

    fn code(raw: &[u8]) -> String {
        check_group(raw).err().map(|refusal| refusal.code).unwrap_or_default()
    }

    #[test]
    fn each_fault_of_a_group_has_its_code() {
        assert_eq!(check_group(&group(&[("a", b"1"), ("b", b"")], 2)), Ok(2));
        assert_eq!(check_group(b""), Ok(0));
        assert_eq!(code(b"not protobuf"), "PostBodyInvalid");
        assert_eq!(code(&[0x0a, 0]), "PostBodyInvalid", "a log without time");
        // A log with a time and a content that has a key only.
        assert_eq!(code(&[0x0a, 7, 8, 1, 0x12, 3, 0x0a, 1, b'k']), "PostBodyInvalid");
        // Category as a number: only prost looks at it.
        assert_eq!(code(&[0x10, 1]), "PostBodyInvalid");
        assert_eq!(code(&group(&[("a", b"\xff")], 1)), "InvalidEncoding");
        assert_eq!(code(&[0x1a, 1, 0xff]), "InvalidEncoding", "topic");
        assert_eq!(code(&group(&[("", b"1")], 1)), "InvalidKey");
        assert_eq!(code(&group(&[("a", b"1"), ("b", b"2"), ("a", b"1")], 1)), "InvalidKey");
        assert_eq!(check_group(&group(&[], LOGS_MAX)), Ok(LOGS_MAX));
        assert_eq!(code(&group(&[], LOGS_MAX + 1)), "PostBodyTooLarge");
    }

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
            let _ = check_group(&body);
        }
    }
}
