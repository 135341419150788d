//! The local SLS as a process of its own, and what it has stored.

#![allow(dead_code, reason = "the tests that use it come with the subcommand `simulate`")]

use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::harness::tool::{Running, Tool};
use crate::harness::{DEADLINE, http, poll, signed};

pub(crate) const PROJECT: &str = "dify-logs";
pub(crate) const ACCESS_KEY_ID: &str = "simulator";
pub(crate) const ACCESS_KEY_SECRET: &str = "simulator-secret";

/// A running simulator, killed when dropped. If the test has failed by then, its log is printed.
pub(crate) struct Simulator {
    running: Running,
    pub(crate) port: u16,
}

/// A log as the simulator stored it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct StoredLog {
    pub(crate) shard: u32,
    pub(crate) cursor: String,
    pub(crate) source: String,
    pub(crate) topic: String,
    pub(crate) tags: serde_json::Value,
    /// Seconds since 1970.
    pub(crate) time: u32,
    pub(crate) contents: Vec<(String, String)>,
}

impl Simulator {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more arguments behind `simulate --listen 127.0.0.1:0`.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        Self::start_on(0, arguments)
    }

    /// On that port; 0 is a free one.
    pub(crate) fn start_on(port: u16, arguments: &[&str]) -> Self {
        // Any connection of another test may have it for its own end, for as long as it lasts.
        poll("the port to be free", DEADLINE, || TcpListener::bind(("127.0.0.1", port)).ok());
        let mut tool = Tool::new(["simulate", "--listen", &format!("127.0.0.1:{port}")])
            .env("ALIYUN_SLS_ACCESS_KEY_ID", ACCESS_KEY_ID)
            .env("ALIYUN_SLS_ACCESS_KEY_SECRET", ACCESS_KEY_SECRET);
        for argument in arguments {
            tool = tool.arg(argument);
        }
        // It lives as long as its test, which has deadlines of its own.
        let mut running = tool.deadline(Duration::from_secs(600)).spawn();
        let line = running.wait_for("listening on 127.0.0.1:");
        let port = line.rsplit(':').next().expect("a split has a part");
        let port = port.trim().parse().unwrap_or_else(|_| panic!("no port in `{line}`"));
        Self { running, port }
    }

    /// Sends the process a signal, such as `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        self.running.signal(name);
    }

    /// The environment under which Dify, and so the tool, reaches it.
    pub(crate) fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("ALIYUN_SLS_ENDPOINT", format!("http://127.0.0.1:{}", self.port)),
            ("ALIYUN_SLS_REGION", "cn-hangzhou".into()),
            ("ALIYUN_SLS_PROJECT_NAME", PROJECT.into()),
            ("ALIYUN_SLS_ACCESS_KEY_ID", ACCESS_KEY_ID.into()),
            ("ALIYUN_SLS_ACCESS_KEY_SECRET", ACCESS_KEY_SECRET.into()),
        ]
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> String {
        let (status, body) = http::request(self.port, "GET", path, "");
        assert!(status == 200, "GET {path}: {status} {body}");
        body
    }

    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &serde_json::Value) -> String {
        let (status, answer) = http::request(self.port, "POST", path, &body.to_string());
        assert!((200..300).contains(&status), "POST {path} {body}: {status} {answer}");
        answer
    }

    /// Forgets all faults ordered by a POST to `/_sim/faults`.
    #[track_caller]
    pub(crate) fn forget_faults(&self) {
        let (status, body) = http::request(self.port, "DELETE", "/_sim/faults", "");
        assert!((200..300).contains(&status), "DELETE /_sim/faults: {status} {body}");
    }

    /// Changes the switches that `change` names; null is the default.
    #[track_caller]
    pub(crate) fn switch(&self, change: &serde_json::Value) {
        let (status, body) =
            http::request(self.port, "PATCH", "/_sim/switches", &change.to_string());
        assert!(status == 200, "PATCH /_sim/switches {change}: {status} {body}");
    }

    /// Orders a fault.
    #[track_caller]
    pub(crate) fn order(&self, fault: &serde_json::Value) {
        self.post("/_sim/faults", fault);
    }

    /// Lets go on what a fault holds.
    #[track_caller]
    pub(crate) fn release(&self) {
        self.post("/_sim/release", &serde_json::json!({}));
    }

    /// Damages what `logstore` of [`PROJECT`] has stored, by a change of `/_sim/tamper`.
    #[track_caller]
    pub(crate) fn tamper(&self, logstore: &str, change: &serde_json::Value) {
        let order = serde_json::json!({"project": PROJECT, "logstore": logstore, "change": change});
        self.post("/_sim/tamper", &order);
    }

    /// Waits until so many requests are `held`, stored `late`, or orders `waiting`.
    #[track_caller]
    pub(crate) fn wait_until(&self, name: &str, wanted: u64) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let faults: serde_json::Value =
                serde_json::from_str(&self.get("/_sim/faults")).unwrap();
            if faults[name] == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{name} is not {wanted}: {faults}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    pub(crate) fn stats(&self) -> serde_json::Value {
        serde_json::from_str(&self.get("/_sim/stats")).unwrap()
    }

    /// A signed call of SLS's own interface that must succeed.
    #[track_caller]
    pub(crate) fn call(
        &self,
        method: &str,
        path: &str,
        query: &[(&str, &str)],
        body: &str,
    ) -> String {
        let (status, answer) = signed::call(self.port, method, path, query, body);
        assert!(status == 200, "{method} {path} {query:?}: {status} {answer}");
        answer
    }

    /// Writes a LogGroup, as any writer may.
    #[track_caller]
    pub(crate) fn put(&self, logstore: &str, group: &[u8]) {
        let (status, answer) = signed::put(self.port, logstore, group);
        assert!(status == 200, "PutLogs to {logstore}: {status} {answer}");
    }

    /// All logs of a logstore of [`PROJECT`].
    #[track_caller]
    pub(crate) fn logs(&self, logstore: &str) -> Vec<StoredLog> {
        let lines = self.get(&format!("/_sim/logs/{PROJECT}/{logstore}"));
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl StoredLog {
    /// The value of a field that must be there.
    #[track_caller]
    pub(crate) fn field(&self, key: &str) -> &str {
        let field = self.contents.iter().find(|(name, _)| name == key);
        &field.unwrap_or_else(|| panic!("no `{key}` in {self:?}")).1
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the simulator's log\n{}", self.running.stderr());
        }
    }
}
