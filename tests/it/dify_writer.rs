//! What arrives in SLS against what Dify's own LogStore writer wrote for the same executions.
//!
//! tests/data/conversion.jsonl holds executions as Dify's SQL writer stored them and as its
//! LogStore writer would have put them. Here they take the whole way: Postgres, tool, SLS.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::harness::fixture::{Fixture, TABLES};

#[derive(Deserialize)]
struct Vector {
    table: String,
    row: Map<String, Value>,
    log: Vec<(String, String)>,
    /// The fields whose keys the SQL writer sorted: their order is not in the row any more.
    lossy: Map<String, Value>,
    tags: Vec<String>,
}

/// All vectors, two years earlier than they were made: finished long ago, whatever today is.
fn vectors() -> Vec<Vector> {
    let earlier = |text: &str| format!("2024-{}", text.strip_prefix("2026-").expect("a time"));
    let text = include_str!("../data/conversion.jsonl");
    let mut vectors: Vec<Vector> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for vector in &mut vectors {
        for column in ["created_at", "finished_at"] {
            if let Some(Value::String(time)) = vector.row.get_mut(column) {
                *time = earlier(time);
            }
        }
        for (key, value) in &mut vector.log {
            if ["created_at", "started_at", "finished_at"].contains(&key.as_str())
                && !value.is_empty()
            {
                *value = earlier(value);
            }
        }
    }
    vectors
}

impl Vector {
    fn id(&self) -> &str {
        self.row["id"].as_str().unwrap()
    }

    /// Why it must be held; `None` if it must arrive.
    fn hold(&self) -> Option<&'static str> {
        let status = self.row["status"].as_str().unwrap();
        if ["running", "pending", "paused", "scheduled"].contains(&status) {
            Some("running")
        } else {
            self.row["finished_at"].is_null().then_some("no finish time")
        }
    }
}

/// Asserts that two texts are the same JSON, spelled the same but for the order of keys.
#[track_caller]
fn assert_reordered(got: &str, wanted: &str) {
    let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(value(got), value(wanted));
    let sorted = |text: &str| {
        let mut characters: Vec<_> = text.chars().collect();
        characters.sort_unstable();
        characters
    };
    assert_eq!(sorted(got), sorted(wanted), "{got}\n{wanted}");
}

#[test]
fn what_arrives_is_what_difys_own_writer_wrote() {
    let fixture = Fixture::new("dify-1.12");
    let vectors = vectors();
    for vector in &vectors {
        fixture.insert(&vector.table, Value::Object(vector.row.clone()));
    }
    fixture.tool("run").run().exits(0).tells("0 differ");
    fixture.holds_every_finished_row_once();

    let (mut exact, mut lossy, mut held, mut surrogates) = (0, 0, 0, 0);
    for (table, logstore) in TABLES {
        let mut holds = fixture.held(table);
        let logs = fixture.sls.logs(logstore);
        let mut logs: BTreeMap<&str, _> = logs.iter().map(|log| (log.field("id"), log)).collect();
        let seconds = fixture.database.psql(&format!(
            "SELECT id, floor(extract(epoch FROM finished_at)) FROM {table} WHERE finished_at \
             IS NOT NULL"
        ));
        let seconds: BTreeMap<&str, &str> =
            seconds.lines().filter_map(|line| line.split_once('|')).collect();
        for vector in vectors.iter().filter(|vector| vector.table == table) {
            let id = vector.id();
            if let Some(reason) = vector.hold() {
                assert_eq!(holds.remove(id).as_deref(), Some(reason), "{:?}", vector.row);
                held += 1;
                continue;
            }
            let log = logs.remove(id).unwrap_or_else(|| panic!("{:?} is missing", vector.row));
            assert_eq!(log.time.to_string(), seconds[id]);
            let mut fields = log.contents.clone();
            assert_eq!(fields.remove(1).0, "log_version");
            for (got, wanted) in fields.iter().zip(&vector.log) {
                assert_eq!(got.0, wanted.0, "{id}");
                if vector.lossy.contains_key(&wanted.0) {
                    assert_reordered(&got.1, &wanted.1);
                    lossy += 1;
                } else {
                    assert_eq!(got.1, wanted.1, "{id}, {}, {:?}", wanted.0, vector.tags);
                    exact += 1;
                }
            }
            let ours: Vec<_> =
                fields[vector.log.len()..].iter().map(|(key, _)| key.as_str()).collect();
            let wanted: &[_] = if table == "workflow_runs" { &["elapsed_time"] } else { &[] };
            assert_eq!(ours, wanted, "our own fields come after Dify's");
            // No UTF-8 can say half a character: it stays six characters of text.
            if vector.tags.iter().any(|tag| tag == "surrogate") {
                surrogates += fields.iter().filter(|(_, text)| text.contains("\\ud8")).count();
            }
        }
        assert!(holds.is_empty() && logs.is_empty(), "not asked for: {holds:?}, {logs:?}");
    }
    eprintln!("{exact} fields equal, {lossy} reordered, {held} held, {surrogates} surrogates");
    assert_eq!(held, 21);
    assert!(exact > 1000 && lossy > 0 && surrogates > 0);
}
