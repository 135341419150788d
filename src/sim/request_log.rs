//! The request log: a line of JSON for every request that came, written when it is answered.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;

use serde::Serialize;

use crate::sim::sync::lock;

/// What is told of a request.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// When it came: Unix time in ms, on the simulator's clock.
    pub unix_ms: i64,
    pub method: &'a str,
    /// Path and query as they were sent.
    pub target: &'a str,
    pub project: Option<&'a str>,
    /// Bytes of the body as it was sent.
    pub body_bytes: usize,
    /// The fault that hit it.
    pub fault: Option<String>,
    /// The answer's status; none if the connection was cut.
    pub status: Option<u16>,
    /// The answer's `x-log-requestid`.
    pub request_id: Option<String>,
    /// What it took until it was answered, any delay included.
    pub took_ms: u64,
}

/// The file, if there is one.
#[derive(Default)]
pub struct RequestLog(Option<Mutex<File>>);

impl RequestLog {
    /// Appends to `path`. Without a path nothing is written.
    pub fn open(path: Option<&Path>) -> std::io::Result<Self> {
        let open = |path| OpenOptions::new().append(true).create(true).open(path);
        Ok(Self(path.map(open).transpose()?.map(Mutex::new)))
    }

    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Writes `line`; a failure is told and does not disturb the service.
    pub fn write(&self, line: &Line<'_>) {
        let Some(file) = &self.0 else { return };
        let mut text = serde_json::to_vec(line).expect("a line is plain values");
        text.push(b'\n');
        if let Err(error) = lock(file).write_all(&text) {
            tracing::warn!(%error, "cannot write the request log");
        }
    }
}
