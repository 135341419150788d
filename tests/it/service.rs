//! What we believe of SLS, as named tests: against the simulator always, and against a real endpoint
//! if `SLS_CONFORMANCE_ENDPOINT` is set, with `SLS_CONFORMANCE_PROJECT` and the variables
//! `ALIYUN_SLS_REGION`, `ALIYUN_SLS_ACCESS_KEY_ID` and `ALIYUN_SLS_ACCESS_KEY_SECRET`.
//!
//! Every test makes a logstore of its own, says its name, writes nowhere else, and deletes it.

mod place;

use dify_sls_backfill::wire::sign::SignatureVersion;
use serde_json::{Value, json};

use crate::harness::simulator::Simulator;
use crate::service::place::{Group, Place};

const FIRST_KEY: &str = "00000000000000000000000000000000";
const LAST_KEY: &str = "ffffffffffffffffffffffffffffffff";
const DAY_S: i64 = 86_400;

#[test]
fn a_group_comes_back_byte_for_byte_from_the_shard_that_owns_its_key() {
    let place = Place::new("bytes");
    let groups = [FIRST_KEY, LAST_KEY].map(Group::now);
    for (group, key) in groups.iter().zip([FIRST_KEY, LAST_KEY]) {
        assert_eq!(place.put(&format!("route?key={key}"), group).status, 200);
    }
    assert_eq!(place.pull(0, 1), [&groups[0].raw[..]]);
    assert_eq!(place.pull(1, 1), [&groups[1].raw[..]]);
}

#[test]
fn a_number_is_stored_once_and_only_numbers_above_it_follow() {
    let place = Place::new("seqid");
    let put = |number: u64, text: &str| {
        let got = place.put(&format!("route?key={LAST_KEY}&seqid={number}"), &Group::now(text));
        if got.status == 200 { String::new() } else { got.code() }
    };
    assert_eq!(put(5, "first"), "");
    for number in [5, 4, 1] {
        assert_eq!(put(number, "again"), "InvalidSequenceId", "{number}");
    }
    assert_eq!(put(9, "a gap is allowed"), "");
    assert_eq!(place.pull(1, 2).len(), 2);
}

#[test]
fn hash_keys_have_numbers_of_their_own() {
    let place = Place::new("keys");
    let key = "fffffffffffffffffffffffffffffff0";
    for key in [LAST_KEY, key] {
        let got = place.put(&format!("route?key={key}&seqid=1"), &Group::now(key));
        assert_eq!(got.status, 200, "{key}");
    }
}

#[test]
fn a_refused_body_uses_no_number_up() {
    let place = Place::new("refused");
    let route = format!("route?key={LAST_KEY}&seqid=1");
    let bad = Group { raw: b"no protobuf".to_vec() };
    assert_eq!(place.put(&route, &bad).code(), "PostBodyInvalid");
    assert_eq!(place.put(&route, &Group::now("good")).status, 200);
}

#[test]
fn a_child_of_a_split_shard_knows_the_numbers_of_its_parent() {
    let place = Place::new("split");
    let route = |number: u64| format!("route?key={LAST_KEY}&seqid={number}");
    assert_eq!(place.put(&route(3), &Group::now("before")).status, 200);
    let target = format!("/shards/1?action=split&key=c{}", "0".repeat(31));
    assert_eq!(place.send("POST", &target, &[], b"").status, 200);
    let shards = place.send("GET", "/shards", &[], b"").json();
    let parent = shards.as_array().unwrap().iter().find(|shard| shard["shardID"] == 1).unwrap();
    assert_eq!(parent["status"], "readonly");
    assert_eq!(place.pull(1, 1).len(), 1, "the parent can be read");
    // Until the split has taken effect everywhere, the parent may still answer.
    assert_eq!(place.put(&route(3), &Group::now("again")).code(), "InvalidSequenceId");
}

#[test]
fn cursors_count_groups_and_end_is_behind_the_last() {
    let place = Place::new("cursors");
    let end = place.cursor(1, "end");
    for n in 0..3 {
        let got = place.put(&format!("route?key={LAST_KEY}"), &Group::now(&n.to_string()));
        assert_eq!(got.status, 200);
    }
    assert_eq!(place.pull(1, 3).len(), 3);
    let begin = place.cursor(1, "begin");
    assert_eq!(place::number(&place.cursor(1, "end")) - place::number(&begin), 3);
    assert_eq!(place::number(&begin), place::number(&end));
    let target = format!("/shards/1?type=log&count=2&cursor={begin}");
    let got = place.send("GET", &target, &[], b"");
    assert_eq!((got.header("x-log-count"), got.header("x-log-compresstype")), ("2", ""));
    let next = place::number(got.header("x-log-cursor"));
    assert_eq!(next - place::number(&begin), 2);
    assert_eq!(place::number(got.header("x-log-read-last-cursor")), next - 1);
    let bounded = format!("{target}&end_cursor={}", got.header("x-log-cursor"));
    assert_eq!(place.send("GET", &bounded, &[], b"").header("x-log-count"), "2");
}

#[test]
fn the_time_of_a_cursor_is_that_of_the_receipt() {
    let place = Place::new("cursortime");
    let group = Group::at(place.now_s() - 5 * DAY_S, "five days old");
    assert_eq!(place.put(&format!("route?key={LAST_KEY}"), &group).status, 200);
    assert_eq!(place.pull(1, 1).len(), 1);
    let begin = place.cursor(1, "begin");
    let target = format!("/shards/1?type=cursor_time&cursor={begin}");
    let received_s = place.send("GET", &target, &[], b"").json()["cursor_time"].as_i64().unwrap();
    assert!((received_s - place.now_s()).abs() < 180, "{received_s}");
    assert_eq!(place.cursor(1, &received_s.to_string()), begin);
    let end = place.cursor(1, "end");
    assert_eq!(place.cursor(1, &(received_s + 1).to_string()), end);
    let got = place.send("GET", "/shards/1?type=cursor_time&cursor=bm9uZQ==", &[], b"");
    assert_eq!((got.status, got.code().as_str()), (400, "InvalidCursor"));
}

#[test]
fn an_acknowledged_group_can_be_pulled_within_ten_seconds() {
    let place = Place::new("delay");
    for n in 0..5 {
        let group = Group::now(&format!("delay {n}"));
        assert_eq!(place.put(&format!("route?key={FIRST_KEY}"), &group).status, 200);
        let start = std::time::Instant::now();
        assert_eq!(place.pull(0, n + 1).len(), n + 1);
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    }
}

#[test]
fn logs_of_a_year_ago_are_stored() {
    let place = Place::new("old");
    for days in [6, 8, 30, 365] {
        let group = Group::at(place.now_s() - days * DAY_S, &format!("{days} days old"));
        let got = place.put(&format!("route?key={FIRST_KEY}"), &group);
        assert_eq!(got.status, 200, "{days} days: {}", got.text());
    }
    assert_eq!(place.pull(0, 4).len(), 4, "none was dropped");
}

#[test]
fn a_signature_lives_fifteen_minutes() {
    for version in [SignatureVersion::V1, SignatureVersion::V4] {
        let mut place = Place::new("skew");
        place.version = version;
        for (skew_s, wanted) in [(-1000, 400), (1000, 400), (-800, 200), (800, 200)] {
            place.skew_s = skew_s;
            let got = place.send("GET", "/shards", &[], b"");
            assert_eq!(got.status, wanted, "{version:?} {skew_s}: {}", got.text());
            if wanted == 400 {
                assert_eq!(got.code(), "RequestTimeExpired");
            }
        }
        place.skew_s = 0;
    }
}

#[test]
fn every_compression_is_taken() {
    let place = Place::new("compress");
    let group = Group::now("compressed");
    // zlib and libzstd can hold bytes as they are: no compressor is needed to ask whether they are
    // taken.
    for (name, body) in [
        ("lz4", group.lz4()),
        ("deflate", group.deflate_stored()),
        ("zstd", group.zstd_raw()),
        ("", group.raw.clone()),
    ] {
        let got = place.put_body("lb", name, group.raw.len(), &body);
        assert_eq!(got.status, 200, "{name}: {}", got.text());
    }
}

#[test]
fn a_value_over_one_megabyte_comes_back_whole() {
    let place = Place::new("value");
    let group = Group::now(&"x".repeat(3 << 20));
    assert_eq!(place.put(&format!("route?key={FIRST_KEY}"), &group).status, 200);
    assert_eq!(place.pull(0, 1), [&group.raw[..]]);
}

#[test]
fn ten_megabytes_are_taken_and_more_is_not() {
    let place = Place::new("size");
    let overhead = Group::now("").raw.len() + 30;
    let limit = 10 << 20;
    assert_eq!(place.put("lb", &Group::now(&"x".repeat(limit - overhead))).status, 200);
    let got = place.put("lb", &Group::now(&"x".repeat(limit)));
    assert_eq!((got.status, got.code().as_str()), (400, "PostBodyTooLarge"));
}

#[test]
fn each_error_has_its_status_and_code() {
    let place = Place::new("errors");
    let raw_size = |size: &'static str| {
        [("Content-Type", "application/x-protobuf"), ("x-log-bodyrawsize", size)]
    };
    let bodies: [(&[u8], &str); 4] = [
        (b"no protobuf", "PostBodyInvalid"),
        // A log without time; one whose value is not UTF-8; a key twice is not defined.
        (&[0x0a, 0], "PostBodyInvalid"),
        (&[0x0a, 10, 8, 1, 0x12, 6, 0x0a, 1, b'k', 0x12, 1, 0xff], "InvalidEncoding"),
        (&[0x0a, 9, 8, 1, 0x12, 5, 0x0a, 0, 0x12, 1, b'v'], "InvalidKey"),
    ];
    for (body, wanted) in bodies {
        let got = place.put_body("lb", "", body.len(), body);
        assert_eq!((got.status, got.code().as_str()), (400, wanted), "{body:?}");
    }
    let got = place.send("POST", "/shards/lb", &raw_size("none"), b"x");
    assert_eq!((got.status, got.code().as_str()), (400, "InvalidBodyRawSize"));
    let got = place.send("GET", "/shards/99?type=cursor&from=end", &[], b"");
    assert_eq!((got.status, got.code().as_str()), (400, "ShardNotExist"));
    let got = place.send("GET", "/shards/0?type=log&count=1&cursor=bm9uZQ==", &[], b"");
    assert_eq!((got.status, got.code().as_str()), (400, "InvalidCursor"));
    let got = place.send("GET", "/index", &[], b"");
    assert_eq!((got.status, got.code().as_str()), (400, "IndexConfigNotExist"));
    let got = place.send_to("GET", "/logstores/there-is-none-of-this-name", &[], b"");
    assert_eq!((got.status, got.code().as_str()), (404, "LogStoreNotExist"));
    assert!(!got.header("x-log-requestid").is_empty());
}

#[test]
fn a_logstore_made_again_is_empty() {
    let place = Place::new("again");
    assert_eq!(place.put("lb", &Group::now("before")).status, 200);
    assert_eq!(place.send("DELETE", "", &[], b"").status, 200);
    place.make_logstore();
    let counts = [0, 1].map(|shard| {
        place::number(&place.cursor(shard, "end")) - place::number(&place.cursor(shard, "begin"))
    });
    assert_eq!(counts, [0, 0]);
}

#[test]
fn what_the_index_holds_is_what_was_set() {
    let place = Place::new("index");
    let index = json!({
        "keys": {"id": {"type": "text", "token": [" "], "caseSensitive": true, "doc_value": true}},
        "max_text_len": 16384,
    });
    let text = index.to_string();
    assert_eq!(place.send("POST", "/index", &[], text.as_bytes()).status, 200);
    let got = place.send("GET", "/index", &[], b"").json();
    assert_eq!(got["keys"]["id"]["type"], "text");
    assert_eq!(got["max_text_len"], 16384);
    let got = place.send("POST", "/index", &[], text.as_bytes());
    assert_eq!((got.status, got.code().as_str()), (400, "IndexAlreadyExist"));
}

/// Only of the simulator: what is acknowledged survives kill -9, whenever it comes.
#[test]
fn what_the_simulator_has_acknowledged_survives_its_kill() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let start = || Simulator::start_with(&["--data", data]);
    let mut simulator = start();
    let mut place = Place::on(&simulator, "kill");
    place.make_project();
    place.make_logstore();
    let mut acknowledged = 0u64;
    for round in 0..5 {
        // Each round is killed while a request is held behind its storing, so before its answer.
        let hold = json!({"kind": "put", "nth": 3, "action": {"hold_after": {}}});
        simulator.order(&hold);
        let lost = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut sent = acknowledged;
                loop {
                    let group = Group::now(&format!("{round}/{sent}"));
                    let route = format!("route?key={LAST_KEY}&seqid={}", sent + 1);
                    match place.try_send("POST", &format!("/shards/{route}"), &group) {
                        Some(200) => sent += 1,
                        Some(status) => panic!("{status}"),
                        None => return sent,
                    }
                }
            });
            simulator.wait_until("held", 1);
            // As `kill -9` does.
            drop(simulator);
            sender.join().unwrap()
        });
        assert_eq!(lost, acknowledged + 2);
        simulator = start();
        place.reach(&simulator);
        // The third was stored and never acknowledged; its number says so.
        let route = format!("route?key={LAST_KEY}&seqid={}", lost + 1);
        assert_eq!(place.put(&route, &Group::now("again")).code(), "InvalidSequenceId");
        acknowledged = lost + 1;
        assert_eq!(place.pull(1, acknowledged as usize).len(), acknowledged as usize);
    }
    let shards: Value = place.send("GET", "/shards", &[], b"").json();
    assert_eq!(shards.as_array().unwrap().len(), 2);
}
