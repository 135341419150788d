//! The local SLS over HTTP: real connections, requests signed as a client signs them.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

mod faults;
mod fuzz;
mod kept;
mod read;
mod set_up;
mod switches;
mod tampering;
mod write;

use super::*;
use crate::secret::Secret;
use crate::sim::clock::Moment;
use crate::sim::service::Settings;
use crate::sim::switch::Switches;
use crate::wire::compression::{Lz4, lz4_decompress};
use crate::wire::log_group::{LogGroupWriter, split_list};
use crate::wire::sign::{Credentials, SignatureVersion, SignedParts, percent, sign};

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

fn settings() -> Settings {
    Settings {
        credentials: credentials(),
        shards_default: 2,
        count_only: false,
        switches: Switches::default(),
        faults: Vec::new(),
        data: None,
        request_log: None,
    }
}

impl Sim {
    async fn start(version: SignatureVersion, count_only: bool) -> Self {
        Self::start_with(version, Settings { count_only, ..settings() }).await
    }

    async fn start_with(version: SignatureVersion, settings: Settings) -> Self {
        // Refused when another test of this process has done it, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        tokio::spawn(serve(listener, Service::new(settings).unwrap(), async {
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
    for query in ["other: x", "*&line=101"] {
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
