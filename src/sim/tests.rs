//! The local SLS over HTTP: real connections, requests signed as a client signs them.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

mod faults;
mod switches;

use super::*;
use crate::secret::Secret;
use crate::sim::clock::Moment;
use crate::wire::compression::{Lz4, lz4_decompress};
use crate::wire::log_group::{LogGroupWriter, split_list};
use crate::wire::sign::{SignatureVersion, SignedParts, percent, sign};

const HASH_KEY: &str = "ffffffffffffffffffffffffffffffff";

/// A running simulator and a client of it.
struct Sim {
    http: reqwest::Client,
    base: String,
    version: SignatureVersion,
    credentials: Credentials,
    /// How far the client's clock is off.
    skew_s: AtomicI64,
    _stop: tokio::sync::oneshot::Sender<()>,
}

struct Got {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Status and error code.
    fn error(&self) -> (u16, String) {
        (self.status, self.json()["errorCode"].as_str().unwrap().to_owned())
    }
}

fn credentials() -> Credentials {
    Credentials {
        access_key_id: "key-id".to_owned(),
        access_key_secret: Secret::new("key-secret"),
        security_token: Some(Secret::new("token")),
    }
}

impl Sim {
    async fn start(version: SignatureVersion, count_only: bool) -> Self {
        // Refused when another test of this process has done it, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let settings = Settings {
            credentials: credentials(),
            shards_default: 2,
            count_only,
            switches: Switches::default(),
            faults: Vec::new(),
        };
        tokio::spawn(serve(listener, settings, async {
            let _ = stopped.await;
        }));
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .build()
            .unwrap();
        let skew_s = AtomicI64::new(0);
        Self { http, base, version, credentials: credentials(), skew_s, _stop: stop }
    }

    /// One with project `dify` and logstore `runs`.
    async fn with_logstore(version: SignatureVersion) -> Self {
        let sim = Self::start(version, false).await;
        sim.make_logstore().await;
        sim
    }

    async fn make_logstore(&self) {
        for (path, body) in [
            ("/", json!({"projectName": "dify", "description": ""})),
            ("/logstores", json!({"logstoreName": "runs", "ttl": 3650})),
        ] {
            let got = self.send("POST", path, &[], body.to_string().as_bytes()).await;
            assert_eq!(got.status, 200, "{path}: {:?}", got.body);
        }
    }

    async fn try_send(
        &self,
        method: &str,
        target: &str,
        extra: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Got, reqwest::Error> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query: Vec<_> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let mut headers: Vec<_> = [("Host", "dify.sls.test"), ("x-log-apiversion", "0.6.0")]
            .iter()
            .chain(extra)
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        if !body.is_empty() && extra.is_empty() {
            headers.push(("Content-Type".to_owned(), "application/json".to_owned()));
        }
        let parts = SignedParts { method, path, query: &query, headers: &headers, body };
        let date_s = Moment::now(0).unix_s() + self.skew_s.load(Ordering::Relaxed);
        let headers = sign(self.version, &self.credentials, "cn-test", date_s, &parts);
        let encoded: Vec<_> =
            query.iter().map(|(k, v)| format!("{}={}", percent(k), percent(v))).collect();
        let url = format!("{}{path}?{}", self.base, encoded.join("&"));
        let mut request = self.http.request(method.parse().unwrap(), url).body(body.to_vec());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let answer = request.send().await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Ok(Got { status, headers, body: answer.bytes().await? })
    }

    async fn send(&self, method: &str, target: &str, extra: &[(&str, &str)], body: &[u8]) -> Got {
        self.try_send(method, target, extra, body).await.unwrap()
    }

    async fn get(&self, target: &str) -> Got {
        self.send("GET", target, &[], b"").await
    }

    async fn try_put(&self, target: &str, raw: &[u8]) -> Result<Got, reqwest::Error> {
        let body = Lz4::default().compress(raw);
        self.try_send("POST", target, &put_headers(&raw.len().to_string()), &body).await
    }

    async fn put(&self, target: &str, raw: &[u8]) -> Got {
        self.try_put(target, raw).await.unwrap()
    }

    async fn cursor(&self, shard: u32, from: &str) -> String {
        let got =
            self.get(&format!("/logstores/runs/shards/{shard}?type=cursor&from={from}")).await;
        got.json()["cursor"].as_str().unwrap().to_owned()
    }

    /// All groups of `shard` from the beginning.
    async fn groups(&self, shard: u32) -> Vec<Vec<u8>> {
        let cursor = self.cursor(shard, "begin").await;
        let target = format!("/logstores/runs/shards/{shard}?type=logs&cursor={cursor}&count=1000");
        let got = self.send("GET", &target, &[("Accept-Encoding", "lz4")], b"").await;
        assert_eq!(got.status, 200);
        let raw_size: usize = got.header("x-log-bodyrawsize").parse().unwrap();
        if raw_size == 0 {
            return Vec::new();
        }
        assert_eq!(got.header("x-log-compresstype"), "lz4");
        let raw = lz4_decompress(&got.body, raw_size).unwrap();
        split_list(&raw).unwrap().into_iter().map(<[u8]>::to_vec).collect()
    }

    /// A control call, which needs no signature.
    async fn control(&self, method: &str, path: &str, body: &str) -> String {
        let url = format!("{}/_sim{path}", self.base);
        let request = self.http.request(method.parse().unwrap(), url).body(body.to_owned());
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200, "{method} {path}");
        answer.text().await.unwrap()
    }

    async fn stats(&self) -> Value {
        serde_json::from_str(&self.control("GET", "/stats", "").await).unwrap()
    }
}

fn put_headers(raw_size: &str) -> [(&str, &str); 3] {
    [
        ("Content-Type", "application/x-protobuf"),
        ("x-log-compresstype", "lz4"),
        ("x-log-bodyrawsize", raw_size),
    ]
}

/// A group with one log at `time`, with these fields.
fn group(time: u32, contents: &[(&str, &str)]) -> Vec<u8> {
    let mut writer = LogGroupWriter::default();
    writer.begin_log(time, 0);
    for (key, value) in contents {
        writer.field(key, value.as_bytes());
    }
    writer.end_log();
    writer.finish(Some(""), Some("backfill"), &[("__batch__", "7/8")]);
    writer.bytes().to_vec()
}

const LB: &str = "/logstores/runs/shards/lb";

#[tokio::test]
async fn what_was_put_comes_back_byte_for_byte() {
    for version in [SignatureVersion::V1, SignatureVersion::V4] {
        let sim = Sim::with_logstore(version).await;
        let groups: Vec<_> = (0..5).map(|n| group(n, &[("n", &n.to_string())])).collect();
        for raw in &groups {
            let got = sim.put(LB, raw).await;
            assert_eq!((got.status, got.body.len()), (200, 0));
            for header in ["x-log-requestid", "date", "x-log-time"] {
                assert!(!got.header(header).is_empty(), "{header}");
            }
        }
        let expected =
            |shard: usize| groups.iter().skip(shard).step_by(2).cloned().collect::<Vec<_>>();
        assert_eq!(sim.groups(0).await, expected(0), "{version:?}");
        assert_eq!(sim.groups(1).await, expected(1));

        // Page by page, uncompressed, up to an end.
        let (begin, end) = (sim.cursor(0, "begin").await, sim.cursor(0, "end").await);
        let page = |cursor: &str, end_name: &str| {
            format!("/logstores/runs/shards/0?type=log&cursor={cursor}&count=2&{end_name}={end}")
        };
        let got = sim.get(&page(&begin, "end_cursor")).await;
        assert_eq!(got.header("x-log-count"), "2");
        assert_eq!(got.header("x-log-compresstype"), "");
        assert_eq!(split_list(&got.body).unwrap(), [&groups[0], &groups[2]]);
        let got = sim.get(&page(got.header("x-log-cursor"), "endCursor")).await;
        assert_eq!(got.header("x-log-count"), "1");
        assert_eq!(got.header("x-log-cursor"), end);
        let got = sim.get(&page(&end, "end_cursor")).await;
        assert_eq!((got.header("x-log-count"), got.body.len()), ("0", 0));
        assert_eq!(got.header("x-log-cursor"), end);
    }
}

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
async fn only_the_signer_is_served() {
    for version in [SignatureVersion::V1, SignatureVersion::V4] {
        let mut sim = Sim::with_logstore(version).await;
        for (skew_s, wanted) in [(-1000, 400), (1000, 400), (-800, 200), (800, 200)] {
            sim.skew_s.store(skew_s, Ordering::Relaxed);
            let got = sim.get("/logstores/runs").await;
            assert_eq!(got.status, wanted, "{skew_s}");
            if wanted == 400 {
                assert_eq!(got.error().1, "RequestTimeExpired");
            }
        }
        sim.skew_s.store(0, Ordering::Relaxed);
        sim.credentials.access_key_secret = Secret::new("wrong");
        let got = sim.put(LB, &group(1, &[])).await;
        assert_eq!(got.error(), (401, "SignatureNotMatch".to_owned()));
        sim.credentials = credentials();
        sim.credentials.access_key_id = "other".to_owned();
        let got = sim.get("/logstores/runs").await;
        assert_eq!(got.error(), (401, "InvalidAccessKeyId".to_owned()));
        sim.credentials = credentials();
        sim.credentials.security_token = None;
        assert_eq!(sim.get("/logstores/runs").await.error(), (401, "Unauthorized".to_owned()));
        sim.credentials = credentials();
        assert_eq!(sim.groups(0).await, Vec::<Vec<u8>>::new());
    }
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
        ("x-log-compresstype", Some("zstd"), "InvalidCompressType"),
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
async fn things_are_set_up_and_looked_at() {
    let sim = Sim::with_logstore(SignatureVersion::V4).await;
    assert_eq!(sim.get("/").await.json()["projectName"], "dify");
    let project = json!({"projectName": "dify"}).to_string();
    let got = sim.send("POST", "/", &[], project.as_bytes()).await;
    assert_eq!(got.error(), (400, "ProjectAlreadyExist".to_owned()));
    // x-log-project goes before the Host.
    let got = sim.send("GET", "/", &[("x-log-project", "elsewhere")], b"").await;
    assert_eq!(got.error(), (404, "ProjectNotExist".to_owned()));

    assert_eq!(sim.get("/logstores").await.json()["logstores"], json!(["runs"]));
    let settings = json!({"logstoreName": "runs", "ttl": 7}).to_string();
    let got = sim.send("POST", "/logstores", &[], settings.as_bytes()).await;
    assert_eq!(got.error(), (400, "LogStoreAlreadyExist".to_owned()));
    assert_eq!(sim.send("PUT", "/logstores/runs", &[], settings.as_bytes()).await.status, 200);
    assert_eq!(sim.get("/logstores/runs").await.json()["ttl"], 7);
    let shards = sim.get("/logstores/runs/shards").await.json();
    assert_eq!(shards[1]["shardID"], 1);
    assert_eq!(shards[1]["inclusiveBeginKey"], "80000000000000000000000000000000");

    let path = "/logstores/runs/index";
    let no_index = (400, "IndexConfigNotExist".to_owned());
    assert_eq!(sim.get(path).await.error(), no_index);
    let index =
        json!({"keys": {"b": {"type": "text"}, "a": {"type": "long"}}, "max_text_len": 16384});
    let index = index.to_string();
    assert_eq!(sim.send("POST", path, &[], index.as_bytes()).await.status, 200);
    let got = sim.send("POST", path, &[], index.as_bytes()).await;
    assert_eq!(got.error(), (400, "IndexAlreadyExist".to_owned()));
    assert_eq!(sim.get(path).await.body, index);
    assert_eq!(sim.send("PUT", path, &[], br#"{"line":{}}"#).await.status, 200);
    assert_eq!(sim.get(path).await.body, r#"{"line":{}}"#);
    assert_eq!(sim.send("DELETE", path, &[], b"").await.status, 200);
    assert_eq!(sim.get(path).await.error(), no_index);

    assert_eq!(sim.send("DELETE", "/logstores/runs", &[], b"").await.status, 200);
    let got = sim.get("/logstores/runs").await;
    assert_eq!(got.error(), (404, "LogStoreNotExist".to_owned()));
    assert_eq!(sim.get("/nothing").await.error(), (404, "UnsupportedOperation".to_owned()));
}

/// What the Rust and Python SDKs send through HTTP_PROXY.
#[tokio::test]
async fn a_target_in_absolute_form_is_served() {
    let sim = Sim::with_logstore(SignatureVersion::V4).await;
    let headers: Vec<_> = [("Host", "dify.sls.test"), ("x-log-apiversion", "0.6.0")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    let parts =
        SignedParts { method: "GET", path: "/logstores", query: &[], headers: &headers, body: b"" };
    let mut request = "GET http://dify.sls.test/logstores HTTP/1.1\r\n".to_owned();
    for (name, value) in
        sign(sim.version, &sim.credentials, "cn-test", Moment::now(0).unix_s(), &parts)
    {
        request += &format!("{name}: {value}\r\n");
    }
    request += "Connection: close\r\n\r\n";
    let mut stream = TcpStream::connect(sim.base.trim_start_matches("http://")).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(r#"["runs"]"#), "{answer}");
}

#[tokio::test]
async fn what_was_written_after_the_index_is_found() {
    let sim = Sim::with_logstore(SignatureVersion::V1).await;
    let search = "/logstores/runs?type=log&from=0&to=100&query=";
    sim.put(LB, &group(9, &[("id", "before")])).await;
    assert_eq!(sim.get(search).await.error().1, "IndexConfigNotExist");
    let index = json!({"keys": {"id": {"type": "text", "token": [" "]}}}).to_string();
    sim.send("POST", "/logstores/runs/index", &[], index.as_bytes()).await;
    for time in [30, 10, 20, 100] {
        sim.put(LB, &group(time, &[("id", &format!("run-{time}")), ("other", "x")])).await;
    }
    let times = |got: &Got| -> Vec<String> {
        let logs = got.json();
        let logs = logs.as_array().unwrap().iter();
        logs.map(|log| log["__time__"].as_str().unwrap().to_owned()).collect()
    };
    let got = sim.get(&format!("{search}*")).await;
    assert_eq!(times(&got), ["10", "20", "30"]);
    assert_eq!((got.header("x-log-progress"), got.header("x-log-count")), ("Complete", "3"));
    assert_eq!(got.json()[0]["__tag__:__batch__"], "7/8");
    for (query, wanted) in [
        ("id: run-20", vec!["20"]),
        ("id: RUN-20 and __source__: backfill", vec!["20"]),
        ("id: \"run-10\" or id: run-30", vec!["10", "30"]),
        ("not id: run-10", vec!["20", "30"]),
        ("id: before", vec![]),
        ("*&line=1&offset=1&reverse=true", vec!["20"]),
    ] {
        assert_eq!(times(&sim.get(&format!("{search}{query}")).await), wanted, "{query}");
    }
    for query in ["* | select count(1)", "other: x", "*&line=101"] {
        let got = sim.get(&format!("{search}{query}")).await;
        assert_eq!(got.error(), (400, "ParameterInvalid".to_owned()), "{query}");
    }
    for name in ["line", "lines"] {
        let body = json!({"from": 0, "to": 1000, "query": "id: run-*", name: 3}).to_string();
        let got = sim.send("POST", "/logstores/runs/logs", &[], body.as_bytes()).await.json();
        assert_eq!(got["meta"]["progress"], "Complete");
        assert_eq!(got["data"].as_array().unwrap().len(), 3);
        assert_eq!(got["data"][0]["id"], "run-10");
    }
    let histogram = "/logstores/runs?type=histogram&from=10&to=31&query=*&interval=10";
    let buckets = sim.get(histogram).await.json();
    let counts: Vec<_> = buckets.as_array().unwrap().iter().map(|b| b["count"].clone()).collect();
    assert_eq!(counts, [1, 1, 1]);
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
