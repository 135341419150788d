//! A local SLS with one logstore of one shard, to which a test writes log by log.

use dify_sls_backfill::wire::log_group::LogGroupWriter;
use serde_json::{Value, json};

use crate::harness::simulator::{PROJECT, Simulator};
use crate::queries::asking::{Asking, Row, now_s};

pub(crate) const STORE: &str = "workflow_execution";

pub(crate) struct Small {
    pub(crate) sls: Simulator,
}

impl Small {
    /// With an index of texts `id` and `text`, and a number `n`.
    pub(crate) fn new(switches: &[&str]) -> Self {
        let small = Self::without_index(switches, json!({}));
        small.index(json!({}));
        small
    }

    pub(crate) fn without_index(switches: &[&str], settings: Value) -> Self {
        let arguments: Vec<_> = switches.iter().flat_map(|switch| ["--switch", *switch]).collect();
        let small = Self { sls: Simulator::start_with(&arguments) };
        small.admin("POST", "/", json!({"projectName": PROJECT, "description": ""}));
        let mut logstore = json!({"logstoreName": STORE, "ttl": 3650, "shardCount": 1});
        logstore.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        small.admin("POST", "/logstores", logstore);
        small
    }

    pub(crate) fn index(&self, more: Value) {
        let key = |kind: &str| json!({"type": kind, "doc_value": true, "token": [" "]});
        let mut index = json!({"keys": {"id": key("text"), "text": key("text"), "n": key("long")}});
        index.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.admin("POST", &format!("/logstores/{STORE}/index"), index);
    }

    pub(crate) fn admin(&self, method: &str, path: &str, body: Value) {
        let answer = self.asking().send(method, path, &[], &body.to_string());
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.body);
    }

    pub(crate) fn asking(&self) -> Asking<'_> {
        Asking(&self.sls)
    }

    pub(crate) fn switch(&self, change: Value) {
        self.sls.switch(&change);
    }

    /// Puts one log, at Unix time `time`.
    pub(crate) fn put(&self, time: i64, fields: &[(&str, &str)]) {
        self.put_from("dify", "7", time, fields);
    }

    /// The same from another source and of another batch.
    pub(crate) fn put_from(&self, source: &str, batch: &str, time: i64, fields: &[(&str, &str)]) {
        let mut writer = LogGroupWriter::default();
        writer.begin_log(u32::try_from(time).unwrap(), 0);
        for (key, value) in fields {
            writer.field(key, value.as_bytes());
        }
        writer.end_log();
        writer.finish(Some(""), Some(source), &[("__batch__", batch)]);
        let path = format!("/logstores/{STORE}/shards/lb");
        let headers = [("Content-Type", "application/x-protobuf")];
        let answer = self.asking().send_bytes("POST", &path, &[], &headers, writer.bytes());
        assert_eq!(answer.status, 200, "{}", answer.body);
    }

    /// Logs `a`, `b`, … of the last minutes with n = 1, 2, …
    pub(crate) fn put_some(&self, count: u8) {
        for n in 1..=count {
            let id = char::from(b'a' + n - 1).to_string();
            self.put(now_s() - 60 * i64::from(n), &[("id", &id), ("n", &n.to_string())]);
        }
    }

    #[track_caller]
    pub(crate) fn sql(&self, sql: &str) -> Vec<Row> {
        self.asking().sql(STORE, &format!("* | {sql}"))
    }

    /// The first column of each row.
    #[track_caller]
    pub(crate) fn column(&self, sql: &str) -> Vec<String> {
        self.sql(sql).into_iter().map(|row| row.into_values().next().unwrap()).collect()
    }

    #[track_caller]
    pub(crate) fn refused(&self, query: &str) -> String {
        self.asking().get_logs_v3(STORE, json!({"query": query})).refused()
    }

    /// The ids that a search finds, the oldest first.
    #[track_caller]
    pub(crate) fn found(&self, query: &str) -> Vec<String> {
        self.asking().search(STORE, query).into_iter().map(|row| row["id"].clone()).collect()
    }
}
