//! The writer against the vendor's bytes and against prost; the reader against prost.

use super::*;
use crate::wire::proto;
use proptest::prelude::*;
use prost::Message;

#[derive(serde::Deserialize)]
struct Vectors {
    log_groups: Vec<GroupVector>,
}

#[derive(serde::Deserialize)]
struct GroupVector {
    name: String,
    topic: Option<String>,
    source: Option<String>,
    tags: Vec<(String, String)>,
    logs: Vec<LogVector>,
    protobuf: String,
    raw_size: usize,
}

#[derive(serde::Deserialize)]
struct LogVector {
    time: u32,
    time_ns: Option<u32>,
    contents: Vec<(String, String)>,
}

#[test]
fn the_bytes_are_those_of_the_vendors_sdk() {
    let vectors: Vectors =
        serde_json::from_str(include_str!("../../../tests/data/sls.json")).unwrap();
    assert_eq!(vectors.log_groups.len(), 3);
    let mut written = 0;
    for vector in &vectors.log_groups {
        let expected = hex::decode(&vector.protobuf).unwrap();
        assert_eq!(expected.len(), vector.raw_size, "{}", vector.name);
        let view = LogGroupView::parse(&expected).unwrap();
        assert_eq!(view.topic, vector.topic.as_deref().map(str::as_bytes));
        assert_eq!(view.source, vector.source.as_deref().map(str::as_bytes));
        for (log, wanted) in view.logs.iter().zip(&vector.logs) {
            assert_eq!((log.time, log.time_ns), (Some(wanted.time), wanted.time_ns));
        }
        // Only what has no nanoseconds can be written: this tool never sends them.
        if vector.logs.iter().any(|log| log.time_ns.is_some()) {
            continue;
        }
        let mut writer = LogGroupWriter::default();
        for log in &vector.logs {
            writer.begin_log(log.time, 0);
            for (key, value) in &log.contents {
                writer.field(key, value.as_bytes());
            }
            writer.end_log();
        }
        let tags: Vec<_> = vector.tags.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        writer.finish(vector.topic.as_deref(), vector.source.as_deref(), &tags);
        assert_eq!(hex::encode(writer.bytes()), vector.protobuf, "{}", vector.name);
        written += 1;
    }
    assert!(written > 0);
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![4 => ".{0,40}", 1 => ".{120,140}", 1 => "[a-z]{16370,16390}"]
}

fn group() -> impl Strategy<Value = proto::LogGroup> {
    let pairs = || proptest::collection::vec((text(), text()), 0..4);
    let log = (any::<u32>(), pairs()).prop_map(|(time, contents)| proto::Log {
        time,
        contents: contents.into_iter().map(|(key, value)| proto::Content { key, value }).collect(),
        time_ns: None,
    });
    (proptest::collection::vec(log, 0..4), proptest::option::of(text()), pairs()).prop_map(
        |(logs, topic, tags)| proto::LogGroup {
            logs,
            category: None,
            source: topic.clone(),
            topic,
            machine_uuid: None,
            log_tags: tags.into_iter().map(|(key, value)| proto::LogTag { key, value }).collect(),
        },
    )
}

proptest! {
    #[test]
    fn the_writer_writes_what_prost_writes(
        group in group(),
        hints in proptest::collection::vec(0usize..40_000, 1..6),
    ) {
        let mut writer = LogGroupWriter::default();
        let mut hint = hints.iter().copied().cycle();
        for log in &group.logs {
            // A log that is taken back leaves no trace.
            writer.begin_log(7, hint.next().unwrap());
            writer.field("gone", b"gone");
            writer.cancel_log();
            writer.begin_log(log.time, hint.next().unwrap());
            for content in &log.contents {
                let range = writer.field_with(&content.key, hint.next().unwrap(), |bytes| {
                    bytes.extend_from_slice(content.value.as_bytes());
                });
                prop_assert_eq!(&writer.bytes()[range], content.value.as_bytes());
            }
            writer.end_log();
            writer.begin_log(8, hint.next().unwrap());
            let size = writer.end_log();
            writer.pop_log(size);
        }
        prop_assert_eq!(writer.logs() as usize, group.logs.len());
        let tags: Vec<_> =
            group.log_tags.iter().map(|tag| (tag.key.as_str(), tag.value.as_str())).collect();
        writer.finish(group.topic.as_deref(), group.source.as_deref(), &tags);
        prop_assert_eq!(writer.bytes(), group.encode_to_vec());
    }

    #[test]
    fn the_reader_reads_what_prost_wrote(groups in proptest::collection::vec(group(), 0..3)) {
        let list = proto::LogGroupList { log_groups: groups };
        let bytes = list.encode_to_vec();
        let parts = split_list(&bytes).unwrap();
        prop_assert_eq!(parts.len(), list.log_groups.len());
        for (part, group) in parts.iter().zip(&list.log_groups) {
            let view = LogGroupView::parse(part).unwrap();
            prop_assert_eq!(view.logs.len(), group.logs.len());
            for (log, wanted) in view.logs.iter().zip(&group.logs) {
                prop_assert_eq!(log.time, Some(wanted.time));
                let contents: Vec<_> = wanted
                    .contents
                    .iter()
                    .map(|content| (content.key.as_bytes(), content.value.as_bytes()))
                    .collect();
                prop_assert_eq!(&log.contents, &contents);
            }
        }
    }

    #[test]
    fn no_bytes_panic_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = LogGroupView::parse(&bytes);
        let _ = LogGroupView::parse_envelope(&bytes);
        let _ = split_list(&bytes);
    }
}

#[test]
fn a_missing_required_field_is_seen() {
    // A Content without a value, in a Log without a time, in a LogGroup.
    assert!(LogGroupView::parse(&[LOGS, 5, CONTENTS, 3, KEY, 1, b'k']).is_err());
    let view = LogGroupView::parse(&[LOGS, 0]).unwrap();
    assert_eq!(view.logs[0].time, None);
}

#[test]
fn old_groups_are_passed_over_and_whose_an_odd_group_is_can_be_told() {
    let mut writer = LogGroupWriter::default();
    writer.begin_log(5, 0);
    writer.end_log();
    writer.finish(None, Some("s"), &[("k", "v")]);
    // Field 9 as a group with field 9, a group, and a varint in it.
    let old_group = [9 << 3 | 3, 9 << 3 | 3, 9 << 3 | 4, 8, 1, 9 << 3 | 4];
    let with_group = [&old_group[..], writer.bytes()].concat();
    let view = LogGroupView::parse(&with_group).unwrap();
    assert_eq!((view.logs.len(), view.tag("k")), (1, Some(b"v".as_slice())));
    assert!(LogGroupView::parse(&old_group[..5]).is_err(), "it has no end");
    assert!(LogGroupView::parse(&[9 << 3 | 3].repeat(100_000)).is_err(), "it is too deep");
    // A log whose time is over 32 bits: odd, but what describes the group can be read.
    let odd = [&[LOGS, 7, TIME, 0xff, 0xff, 0xff, 0xff, 0xff, 1][..], writer.bytes()].concat();
    assert!(LogGroupView::parse(&odd).is_err());
    let envelope = LogGroupView::parse_envelope(&odd).unwrap();
    assert_eq!(
        (envelope.source, envelope.tag("k")),
        (Some(b"s".as_slice()), Some(b"v".as_slice()))
    );
    assert!(LogGroupView::parse_envelope(&odd[..odd.len() - 1]).is_err());
}

#[test]
fn varints_have_the_length_that_is_foretold() {
    for shift in 0..64 {
        for value in [(1u64 << shift) - 1, 1 << shift] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            assert_eq!(bytes.len(), varint_len(value), "{value}");
            assert_eq!(Fields { bytes: &bytes }.varint(), Some(value));
        }
    }
}
