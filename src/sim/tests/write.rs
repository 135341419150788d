//! PutLogs, as a client meets it.

use super::*;
use crate::sim::compression::Compression;

#[tokio::test]
async fn an_uncompressed_body_is_taken_too() {
    let sim = Sim::with_logstore(SignatureVersion::V4).await;
    let raw = group(1, &[("a", "b")]);
    let size = raw.len().to_string();
    let headers = [("Content-Type", "application/x-protobuf"), ("x-log-bodyrawsize", &size)];
    // The Go SDK's path, without /shards/lb.
    assert_eq!(sim.send("POST", "/logstores/runs", &headers, &raw).await.status, 200);
    assert_eq!(sim.groups(0).await, [raw]);
}

#[tokio::test]
async fn a_number_is_taken_once() {
    let sim = Sim::with_logstore(SignatureVersion::V1).await;
    let route = |number| format!("/logstores/runs/shards/route?key={HASH_KEY}&seqid={number}");
    let (first, second) = (group(1, &[]), group(2, &[]));
    assert_eq!(sim.put(&route(5), &first).await.status, 200);
    for number in [5, 4, 0] {
        let got = sim.put(&route(number), &second).await;
        assert_eq!(got.error(), (400, "InvalidSequenceId".to_owned()));
    }
    // A refused body uses no number up.
    assert_eq!(sim.put(&route(6), b"bad").await.error().1, "PostBodyInvalid");
    assert_eq!(sim.put(&route(6), &second).await.status, 200);
    assert_eq!(sim.groups(1).await, [first, second]);
    assert_eq!(sim.stats().await["errors"], json!({"InvalidSequenceId": 3, "PostBodyInvalid": 1}));
}

#[tokio::test]
async fn each_fault_of_a_write_has_its_code() {
    let sim = Sim::with_logstore(SignatureVersion::V1).await;
    let good = group(1, &[("a", "b")]);
    let body = Lz4::default().compress(&good);
    let size = good.len().to_string();
    let changed = |name: &'static str, value: Option<&'static str>| {
        let mut headers = put_headers(&size).to_vec();
        headers.retain(|(n, _)| *n != name);
        headers.extend(value.map(|value| (name, value)));
        headers
    };
    for (name, value, wanted) in [
        ("x-log-bodyrawsize", None, "MissingBodyRawSize"),
        ("x-log-bodyrawsize", Some("many"), "InvalidBodyRawSize"),
        ("x-log-bodyrawsize", Some("10485761"), "PostBodyTooLarge"),
        ("x-log-bodyrawsize", Some("3"), "PostBodyUncompressError"),
        ("x-log-compresstype", Some("snappy"), "InvalidCompressType"),
        ("x-log-compresstype", Some("zstd"), "PostBodyUncompressError"),
        ("x-log-compresstype", Some("deflate"), "PostBodyUncompressError"),
        ("x-log-compresstype", None, "InvalidBodyRawSize"),
        ("Content-Type", None, "MissingContentType"),
        ("x-log-mode", Some("batch_group"), "ParameterInvalid"),
    ] {
        let got = sim.send("POST", LB, &changed(name, value), &body).await;
        assert_eq!(got.error(), (400, wanted.to_owned()), "{name} {value:?}");
    }
    let got = sim.send("POST", LB, &changed("Content-Type", Some("text/plain")), &body).await;
    assert_eq!(got.error(), (415, "InvalidContentType".to_owned()));
    let got = sim.send("POST", LB, &put_headers("100"), b"no LZ4").await;
    assert_eq!(got.error(), (400, "PostBodyUncompressError".to_owned()));
    for (raw, wanted) in [
        (b"no protobuf".to_vec(), "PostBodyInvalid"),
        (vec![0x0a, 0], "PostBodyInvalid"),
        (vec![0x1a, 1, 0xff], "InvalidEncoding"),
        (group(1, &[("a", "1"), ("a", "2")]), "InvalidKey"),
        (group(1, &[("", "1")]), "InvalidKey"),
    ] {
        assert_eq!(sim.put(LB, &raw).await.error(), (400, wanted.to_owned()));
    }
    for (target, status, wanted) in [
        ("/logstores/none/shards/lb", 404, "LogStoreNotExist"),
        ("/logstores/runs/shards/route?seqid=1", 400, "ParameterInvalid"),
        ("/logstores/runs/shards/route?key=5F", 400, "ParameterInvalid"),
        ("/logstores/runs/shards/0", 404, "UnsupportedOperation"),
    ] {
        assert_eq!(sim.put(target, &good).await.error(), (status, wanted.to_owned()), "{target}");
    }
    assert_eq!(sim.stats().await["put_ok"], 0);
    assert!(sim.groups(0).await.is_empty() && sim.groups(1).await.is_empty());
}

#[tokio::test]
async fn counting_only_stores_nothing() {
    let sim = Sim::start(SignatureVersion::V4, true).await;
    sim.make_logstore().await;
    let raw = group(1, &[("a", &"long ".repeat(2_000_000))]);
    let route = format!("/logstores/runs/shards/route?key={HASH_KEY}&seqid=1");
    assert_eq!(sim.put(&route, &raw).await.status, 200);
    assert_eq!(sim.put(&route, &raw).await.error().1, "InvalidSequenceId");
    let body = Lz4::default().compress(&raw);
    let got = sim.send("POST", LB, &put_headers("17"), &body).await;
    assert_eq!(got.error().1, "PostBodyUncompressError");
    let stats = sim.stats().await;
    assert_eq!(
        (&stats["put_ok"], &stats["groups"], &stats["logs"]),
        (&json!(1), &json!(1), &json!(0))
    );
    assert_eq!(stats["raw_bytes"], raw.len());
    assert_eq!(stats["body_bytes"], body.len());
    assert_eq!(sim.control("GET", "/logs/dify/runs", "").await, "");
}

#[tokio::test]
async fn every_compression_is_taken_and_given() {
    let sim = Sim::with_logstore(SignatureVersion::V4).await;
    let route = "/logstores/runs/shards/route?key=00000000000000000000000000000000";
    let raw = group(1, &[("a", &"long ".repeat(1000))]);
    let size = raw.len().to_string();
    for name in ["lz4", "zstd", "deflate"] {
        let compression = Compression::of_name(name).unwrap();
        let mut headers = put_headers(&size);
        headers[1].1 = name;
        let body = compression.compress(raw.clone());
        assert_eq!(sim.send("POST", route, &headers, &body).await.status, 200, "{name}");
        let begin = sim.cursor(0, "begin").await;
        let pull = format!("/logstores/runs/shards/0?type=log&count=1&cursor={begin}");
        let got = sim.send("GET", &pull, &[("Accept-Encoding", name)], b"").await;
        assert_eq!(got.header("x-log-compresstype"), name);
        let raw_size: usize = got.header("x-log-bodyrawsize").parse().unwrap();
        let list = compression.decompress(&got.body, raw_size).unwrap();
        assert_eq!(split_list(&list).unwrap(), [&raw[..]], "{name}");
    }
    assert_eq!(sim.groups(0).await.len(), 3);
}
