//! Where the beliefs are tested: a logstore of its own, in the simulator or in a real project.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dify_sls_backfill::secret::Secret;
use dify_sls_backfill::wire::compression::{Lz4, lz4_decompress};
use dify_sls_backfill::wire::log_group::{LogGroupWriter, split_list};
use dify_sls_backfill::wire::sign::{Credentials, SignatureVersion, SignedParts, percent, sign};
use serde_json::{Value, json};

use crate::harness::simulator::{PROJECT, Simulator};

/// How long a new logstore may refuse writes, and how long what was written may be invisible.
const PATIENCE: Duration = Duration::from_secs(180);

pub(super) struct Place {
    http: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    /// Scheme and address to connect to.
    base: String,
    /// The Host header.
    host: String,
    project: String,
    region: String,
    credentials: Credentials,
    pub(super) logstore: String,
    pub(super) version: SignatureVersion,
    /// How far our clock is put off when we sign.
    pub(super) skew_s: i64,
    /// Lives as long as its logstore.
    simulator: Option<Simulator>,
}

pub(super) struct Got {
    pub(super) status: u16,
    headers: reqwest::header::HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Got {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    pub(super) fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The error code; empty if there is none.
    pub(super) fn code(&self) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["errorCode"].as_str().unwrap_or_default().to_owned()
    }
}

/// One LogGroup message with one log.
pub(super) struct Group {
    pub(super) raw: Vec<u8>,
}

impl Group {
    pub(super) fn now(text: &str) -> Self {
        Self::at(now_s(), text)
    }

    /// With a log at `time_s`, Unix time.
    pub(super) fn at(time_s: i64, text: &str) -> Self {
        let mut writer = LogGroupWriter::default();
        writer.begin_log(u32::try_from(time_s).unwrap(), 0);
        writer.field("text", text.as_bytes());
        writer.end_log();
        writer.finish(Some(""), Some("conformance"), &[("tag", "你好")]);
        Self { raw: writer.bytes().to_vec() }
    }

    pub(super) fn lz4(&self) -> Vec<u8> {
        Lz4::default().compress(&self.raw).to_vec()
    }

    /// zlib's wrapping around one stored block (RFC 1950, RFC 1951 3.2.4).
    pub(super) fn deflate_stored(&self) -> Vec<u8> {
        let len = u16::try_from(self.raw.len()).unwrap();
        let (mut a, mut b) = (1u32, 0u32);
        for byte in &self.raw {
            a = (a + u32::from(*byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        let head = [&[0x78, 0x01, 0x01][..], &len.to_le_bytes(), &(!len).to_le_bytes()].concat();
        [&head[..], &self.raw, &(b << 16 | a).to_be_bytes()].concat()
    }

    /// A zstd frame of one raw block, with its content's size (RFC 8878).
    pub(super) fn zstd_raw(&self) -> Vec<u8> {
        let len = u32::try_from(self.raw.len()).unwrap();
        let head = [&[0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000][..], &len.to_le_bytes()].concat();
        [&head[..], &(len << 3 | 1).to_le_bytes()[..3], &self.raw].concat()
    }
}

/// The number that a cursor is.
pub(super) fn number(cursor: &str) -> i64 {
    String::from_utf8(STANDARD.decode(cursor).unwrap()).unwrap().parse().unwrap()
}

fn now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("SLS_CONFORMANCE_ENDPOINT is set, {name} is not"))
}

impl Place {
    /// A new logstore for the test `name`.
    pub(super) fn new(name: &str) -> Self {
        let Ok(endpoint) = std::env::var("SLS_CONFORMANCE_ENDPOINT") else {
            let simulator = Simulator::start();
            let mut place = Self::on(&simulator, name);
            place.make_project();
            place.make_logstore();
            place.simulator = Some(simulator);
            return place;
        };
        let project = variable("SLS_CONFORMANCE_PROJECT");
        let (scheme, domain) = endpoint.split_once("://").unwrap_or(("https", &endpoint));
        let host = format!("{project}.{domain}");
        let credentials = Credentials {
            access_key_id: variable("ALIYUN_SLS_ACCESS_KEY_ID"),
            access_key_secret: Secret::new(variable("ALIYUN_SLS_ACCESS_KEY_SECRET")),
            security_token: None,
        };
        let region = variable("ALIYUN_SLS_REGION");
        let base = format!("{scheme}://{host}");
        let place = Self::at(base, host, project, region, credentials, name);
        place.make_logstore();
        place
    }

    /// In `simulator`, whose project and logstore are still to be made.
    pub(super) fn on(simulator: &Simulator, name: &str) -> Self {
        let environment = simulator.env();
        let value = |name: &str| {
            environment.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone()).unwrap()
        };
        let credentials = Credentials {
            access_key_id: value("ALIYUN_SLS_ACCESS_KEY_ID"),
            access_key_secret: Secret::new(value("ALIYUN_SLS_ACCESS_KEY_SECRET")),
            security_token: None,
        };
        let (base, region) = (value("ALIYUN_SLS_ENDPOINT"), value("ALIYUN_SLS_REGION"));
        let host = format!("{PROJECT}.sls.test");
        Self::at(base, host, PROJECT.to_owned(), region, credentials, name)
    }

    fn at(
        base: String,
        host: String,
        project: String,
        region: String,
        credentials: Credentials,
        name: &str,
    ) -> Self {
        // Refused when another test of this process has done it, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let logstore = format!("conformance-{name}-{}", &unique[..8]);
        eprintln!("scratch logstore {logstore} in project {project} at {base}");
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .timeout(Duration::from_secs(60))
            .build()
            .unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let version = SignatureVersion::V4;
        Self {
            http,
            runtime,
            base,
            host,
            project,
            region,
            credentials,
            logstore,
            version,
            skew_s: 0,
            simulator: None,
        }
    }

    /// Goes on with the same logstore in `simulator`.
    pub(super) fn reach(&mut self, simulator: &Simulator) {
        self.base = format!("http://127.0.0.1:{}", simulator.port);
    }

    pub(super) fn make_project(&self) {
        let body = json!({"projectName": self.project, "description": ""}).to_string();
        assert_eq!(self.send_to("POST", "/", &[], body.as_bytes()).status, 200);
    }

    /// Makes the logstore with two shards and waits until it takes writes.
    pub(super) fn make_logstore(&self) {
        let body = json!({
            "logstoreName": self.logstore, "ttl": 3650, "shardCount": 2, "autoSplit": false,
        });
        let got = self.send_to("POST", "/logstores", &[], body.to_string().as_bytes());
        assert_eq!(got.status, 200, "{}", got.text());
        let deadline = Instant::now() + PATIENCE;
        while self.send("GET", "/shards/0?type=cursor&from=end", &[], b"").status != 200 {
            assert!(Instant::now() < deadline, "{} does not come", self.logstore);
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// A request about the logstore: `target` goes on behind its path.
    pub(super) fn send(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Got {
        self.send_to(method, &format!("/logstores/{}{target}", self.logstore), headers, body)
    }

    pub(super) fn send_to(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Got {
        self.attempt(method, target, headers, body)
            .unwrap_or_else(|error| panic!("{method} {target}: {error:?}"))
    }

    /// PutLogs, in LZ4: the status, or nothing if there was no answer.
    pub(super) fn try_send(&self, method: &str, target: &str, group: &Group) -> Option<u16> {
        let size = group.raw.len().to_string();
        let target = format!("/logstores/{}{target}", self.logstore);
        let got = self.attempt(method, &target, &put_headers("lz4", &size), &group.lz4());
        got.ok().map(|got| got.status)
    }

    /// PutLogs in LZ4, `form` behind `/shards/`; waits where the logstore is too new.
    pub(super) fn put(&self, form: &str, group: &Group) -> Got {
        self.put_body(form, "lz4", group.raw.len(), &group.lz4())
    }

    pub(super) fn put_body(&self, form: &str, compression: &str, raw: usize, body: &[u8]) -> Got {
        let raw_size = raw.to_string();
        let mut headers = put_headers(compression, &raw_size);
        headers.retain(|(_, value)| !value.is_empty());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let got = self.send("POST", &format!("/shards/{form}"), &headers, body);
            if got.code().to_lowercase() != "logstorenotexist" || Instant::now() > deadline {
                return got;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    pub(super) fn cursor(&self, shard: u32, from: &str) -> String {
        let target = format!("/shards/{shard}?type=cursor&from={from}");
        self.send("GET", &target, &[], b"").json()["cursor"].as_str().unwrap().to_owned()
    }

    /// The groups of `shard` from the beginning, as soon as there are `wanted`.
    pub(super) fn pull(&self, shard: u32, wanted: usize) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let groups = self.pull_now(shard);
            if groups.len() >= wanted || Instant::now() > deadline {
                return groups;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn pull_now(&self, shard: u32) -> Vec<Vec<u8>> {
        let mut cursor = self.cursor(shard, "begin");
        let mut groups = Vec::new();
        loop {
            let target = format!("/shards/{shard}?type=log&count=1000&cursor={cursor}");
            let got = self.send("GET", &target, &[("Accept-Encoding", "lz4")], b"");
            assert_eq!(got.status, 200, "{}", got.text());
            let raw_size: usize = got.header("x-log-bodyrawsize").parse().unwrap();
            if raw_size == 0 {
                return groups;
            }
            let raw = lz4_decompress(&got.body, raw_size).unwrap();
            groups.extend(split_list(&raw).unwrap().into_iter().map(<[u8]>::to_vec));
            got.header("x-log-cursor").clone_into(&mut cursor);
        }
    }

    pub(super) fn now_s(&self) -> i64 {
        now_s()
    }

    fn attempt(
        &self,
        method: &str,
        target: &str,
        extra: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Got, reqwest::Error> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key.to_owned(), value.to_owned())
        };
        let query: Vec<_> = query.split('&').filter(|text| !text.is_empty()).map(pair).collect();
        let mut headers: Vec<_> = [("Host", &self.host[..]), ("x-log-apiversion", "0.6.0")]
            .iter()
            .chain(extra)
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        if extra.iter().all(|(name, _)| *name != "x-log-bodyrawsize") {
            headers.push(("x-log-bodyrawsize".to_owned(), body.len().to_string()));
        }
        if !body.is_empty() && extra.is_empty() {
            headers.push(("Content-Type".to_owned(), "application/json".to_owned()));
        }
        let parts = SignedParts { method, path, query: &query, headers: &headers, body };
        let date_s = now_s() + self.skew_s;
        let headers = sign(self.version, &self.credentials, &self.region, date_s, &parts);
        let query: Vec<_> = query
            .iter()
            .map(|(key, value)| format!("{}={}", percent(key), percent(value)))
            .collect();
        let mark = if query.is_empty() { "" } else { "?" };
        let url = format!("{}{path}{mark}{}", self.base, query.join("&"));
        let mut request = self.http.request(method.parse().unwrap(), url).body(body.to_vec());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        self.runtime.block_on(async {
            let answer = request.send().await?;
            let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
            Ok(Got { status, headers, body: answer.bytes().await?.to_vec() })
        })
    }
}

fn put_headers<'a>(compression: &'a str, raw_size: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("Content-Type", "application/x-protobuf"),
        ("x-log-compresstype", compression),
        ("x-log-bodyrawsize", raw_size),
    ]
}

impl Drop for Place {
    fn drop(&mut self) {
        self.skew_s = 0;
        let target = format!("/logstores/{}", self.logstore);
        // The simulator may be gone by now; a real logstore that stays is named above.
        match self.attempt("DELETE", &target, &[], b"") {
            Ok(got) if got.status != 200 => eprintln!("{target} is left: {}", got.text()),
            Ok(_) => {}
            Err(error) => eprintln!("{target} is left: {error}"),
        }
    }
}
