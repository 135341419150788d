//! One signed request, one attempt, one deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use crate::sls::answer::{Answer, Failure, NextAction, classify};
use crate::sls::endpoint::Endpoint;
use crate::wire::sign::{
    Credentials, SignatureVersion, SignedParts, parse_http_date, percent, sign,
};

/// No answer is larger: PullLogs says how large it is before we read it.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// What a client needs to know.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    pub endpoint: Endpoint,
    pub region: String,
    pub credentials: Credentials,
    pub signature: SignatureVersion,
    /// From the first byte sent to the last received.
    pub deadline: Duration,
    /// Certificates, in DER, that are trusted beside the system's.
    pub ca_certificates: Vec<Vec<u8>>,
}

/// A project of SLS. Clones share connections and clock.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    settings: Arc<ClientSettings>,
    /// How far SLS's clock is ahead of ours, in seconds.
    clock_offset_s: Arc<AtomicI64>,
    /// Our clock: when it was looked at, and what it said. From then on it only runs, so nobody
    /// who sets it makes a signature look older than it is.
    started: (Instant, i64),
}

/// A request before it is signed.
#[derive(Debug, Clone)]
pub(in crate::sls) struct Call {
    pub(in crate::sls) method: Method,
    pub(in crate::sls) path: String,
    pub(in crate::sls) query: Vec<(String, String)>,
    pub(in crate::sls) headers: Vec<(String, String)>,
    pub(in crate::sls) body: Bytes,
    /// Unix seconds; `None`: now.
    pub(in crate::sls) signed_at: Option<i64>,
}

impl Call {
    pub(in crate::sls) fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            query: Vec::new(),
            headers: Vec::new(),
            body: Bytes::new(),
            signed_at: None,
        }
    }

    pub(in crate::sls) fn query(mut self, key: &str, value: impl ToString) -> Self {
        self.query.push((key.to_owned(), value.to_string()));
        self
    }

    pub(in crate::sls) fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

/// A success.
#[derive(Debug, Clone)]
pub(in crate::sls) struct Success {
    pub(in crate::sls) headers: HeaderMap,
    pub(in crate::sls) body: Bytes,
}

impl Success {
    /// A header's text; a failure if SLS left it out.
    pub(in crate::sls) fn header(&self, name: &str) -> Result<&str, Failure> {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .ok_or_else(|| Failure::unknown(format!("SLS's answer lacks the header {name}")))
    }
}

impl Client {
    /// Makes a client; connects nowhere yet.
    pub fn new(settings: ClientSettings) -> anyhow::Result<Self> {
        let certificates = settings
            .ca_certificates
            .iter()
            .map(|der| reqwest::Certificate::from_der(der))
            .collect::<Result<Vec<_>, _>>()
            .context("read an extra CA certificate")?;
        // Harmless when it was installed before: it is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            // A followed 307 would send the signed POST a second time.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .http1_only()
            .tcp_nodelay(true)
            .tls_certs_merge(certificates)
            .connect_timeout(Duration::from_secs(10))
            .timeout(settings.deadline);
        if settings.endpoint.is_loopback {
            builder = builder.no_proxy();
        }
        Ok(Self {
            http: builder.build().context("make the HTTP client")?,
            settings: Arc::new(settings),
            clock_offset_s: Arc::default(),
            started: (Instant::now(), local_now()),
        })
    }

    /// SLS's clock, Unix seconds: ours, corrected by the last answer's Date.
    pub fn now(&self) -> i64 {
        self.own_now() + self.clock_offset_s.load(Ordering::Relaxed)
    }

    fn own_now(&self) -> i64 {
        let (at, unix_s) = self.started;
        unix_s + i64::try_from(at.elapsed().as_secs()).unwrap_or(i64::MAX)
    }

    /// Makes one attempt at `call`.
    pub(in crate::sls) async fn call(&self, call: Call) -> Result<Success, Failure> {
        let request = self.request(&call)?;
        let mut response = self.http.execute(request).await.map_err(|error| no_answer(&error))?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        self.follow_clock(&headers);
        tracing::debug!("{} {} of SLS: status {status}", call.method, call.path);
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let raw_size = text("x-log-bodyrawsize").and_then(|size| size.parse().ok()).unwrap_or(0);
        if response.content_length().unwrap_or(0).max(raw_size) > ANSWER_BYTES_MAX {
            return Err(Failure::unknown("an answer of over 64 MiB"));
        }
        let mut body = Vec::with_capacity(response.content_length().unwrap_or(0) as usize);
        while let Some(chunk) = response.chunk().await.map_err(|error| no_answer(&error))? {
            if (body.len() + chunk.len()) as u64 > ANSWER_BYTES_MAX {
                return Err(Failure::unknown("an answer of over 64 MiB"));
            }
            body.extend_from_slice(&chunk);
        }
        classify(Answer { status, request_id: text("x-log-requestid"), body: &body })?;
        Ok(Success { headers, body: body.into() })
    }

    fn request(&self, call: &Call) -> Result<reqwest::Request, Failure> {
        let settings = &self.settings;
        let mut headers = call.headers.clone();
        let mut add = |name: &str, value: &str| headers.push((name.to_owned(), value.to_owned()));
        add("host", &settings.endpoint.host_header);
        add("x-log-apiversion", "0.6.0");
        if !call.headers.iter().any(|(name, _)| name == "x-log-bodyrawsize") {
            add("x-log-bodyrawsize", &call.body.len().to_string());
        }
        let parts = SignedParts {
            method: call.method.as_str(),
            path: &call.path,
            query: &call.query,
            headers: &headers,
            body: &call.body,
        };
        let signed_at = call.signed_at.unwrap_or_else(|| self.now());
        let signed =
            sign(settings.signature, &settings.credentials, &settings.region, signed_at, &parts);
        let query: Vec<_> = call
            .query
            .iter()
            .map(|(key, value)| format!("{}={}", percent(key), percent(value)))
            .collect();
        let separator = if query.is_empty() { "" } else { "?" };
        let url =
            format!("{}{}{separator}{}", settings.endpoint.base_url, call.path, query.join("&"));
        let mut request = self
            .http
            .request(call.method.clone(), url)
            .body(call.body.clone())
            .build()
            .map_err(|error| no_answer(&error))?;
        for (name, value) in signed {
            let name = HeaderName::try_from(name.as_str());
            let value = HeaderValue::try_from(value.as_str());
            let (Ok(name), Ok(value)) = (name, value) else {
                return Err(Failure {
                    next: NextAction::Stop,
                    code: String::new(),
                    what: "a setting of SLS holds a character that no header may hold".to_owned(),
                });
            };
            request.headers_mut().insert(name, value);
        }
        Ok(request)
    }

    fn follow_clock(&self, headers: &HeaderMap) {
        // A proxy's idea of the time is not SLS's.
        if !headers.contains_key("x-log-requestid") {
            return;
        }
        let date = headers.get("date").and_then(|date| date.to_str().ok());
        if let Some(date) = date.and_then(parse_http_date) {
            self.clock_offset_s.store(date - self.own_now(), Ordering::Relaxed);
        }
    }
}

fn local_now() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX)
}

/// An error of the HTTP client in words, with its causes: its own text stops before the cause.
fn no_answer(error: &reqwest::Error) -> Failure {
    // A connection that never came about has carried nothing.
    let (next, mut what) = match error.is_connect() {
        true => (NextAction::NotSent, String::from("no connection to SLS")),
        false => (NextAction::Unknown, String::from("no answer from SLS")),
    };
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        what += &format!(": {error}");
        cause = error.source();
    }
    Failure { next, code: String::new(), what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn the_clock_follows_sls_and_no_proxy() {
        let settings = ClientSettings {
            endpoint: Endpoint::parse("http://127.0.0.1:1", "dify-logs").unwrap(),
            region: "cn-hangzhou".to_owned(),
            credentials: Credentials {
                access_key_id: "id".to_owned(),
                access_key_secret: Secret::new("secret"),
                security_token: None,
            },
            signature: SignatureVersion::V4,
            deadline: Duration::from_secs(1),
            ca_certificates: Vec::new(),
        };
        let client = Client::new(settings).unwrap();
        let ahead = client.now() + 7200;
        let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(ahead.unsigned_abs()));
        let mut headers = HeaderMap::from_iter([(reqwest::header::DATE, date.parse().unwrap())]);
        client.follow_clock(&headers);
        assert!(client.now() < ahead - 7000, "the answer is not from SLS");
        headers.insert("x-log-requestid", HeaderValue::from_static("1"));
        client.follow_clock(&headers);
        assert!((client.now() - ahead).abs() <= 1);
    }
}
