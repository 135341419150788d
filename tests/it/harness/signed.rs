//! A signed call of SLS's own interface, for what the tool itself never asks.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use dify_sls_backfill::secret::Secret;
use dify_sls_backfill::wire::sign::{Credentials, SignatureVersion, SignedParts, sign};

use crate::harness::http;
use crate::harness::simulator::{ACCESS_KEY_ID, ACCESS_KEY_SECRET, PROJECT};

/// Sends a call about [`PROJECT`] with a JSON body or none; gives status and body.
pub(crate) fn call(
    port: u16,
    method: &str,
    path: &str,
    query: &[(&str, &str)],
    body: &str,
) -> (u16, String) {
    send(port, (method, path), query, "application/json", body.as_bytes())
}

/// Sends a LogGroup to a logstore of [`PROJECT`], as any writer may; gives status and body.
pub(crate) fn put(port: u16, logstore: &str, group: &[u8]) -> (u16, String) {
    let path = format!("/logstores/{logstore}/shards/lb");
    send(port, ("POST", &path), &[], "application/x-protobuf", group)
}

fn send(
    port: u16,
    (method, path): (&str, &str),
    query: &[(&str, &str)],
    content_type: &str,
    body: &[u8],
) -> (u16, String) {
    let host = format!("{PROJECT}.127.0.0.1:{port}");
    let credentials = Credentials {
        access_key_id: ACCESS_KEY_ID.to_owned(),
        access_key_secret: Secret::new(ACCESS_KEY_SECRET.to_owned()),
        security_token: None,
    };
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let query: Vec<_> = query.iter().copied().map(owned).collect();
    let headers: Vec<_> = [
        ("Host", host.as_str()),
        ("Content-Type", content_type),
        ("x-log-apiversion", "0.6.0"),
        ("x-log-bodyrawsize", &body.len().to_string()),
    ]
    .map(owned)
    .into();
    let parts = SignedParts { method, path, query: &query, headers: &headers, body };
    let signed =
        sign(SignatureVersion::V1, &credentials, "local", i64::try_from(now).unwrap(), &parts);
    let query: Vec<_> = query.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut text = format!("{method} {path}?{} HTTP/1.0\r\n", query.join("&"));
    for (name, value) in signed {
        text += &format!("{name}: {value}\r\n");
    }
    text += &format!("Content-Length: {}\r\n\r\n", body.len());
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(&[text.as_bytes(), body].concat()).unwrap();
    http::answer(stream)
}
