//! The table: each row is a test, and a row of docs/verify.md.

use std::collections::BTreeMap;
use std::time::Duration;

use dify_sls_backfill::secret::Secret;
use dify_sls_backfill::sls::client::{Client, ClientSettings};
use dify_sls_backfill::sls::endpoint::Endpoint;
use dify_sls_backfill::sls::put::Put;
use dify_sls_backfill::wire::compression::Lz4;
use dify_sls_backfill::wire::log_group::LogGroupWriter;
use dify_sls_backfill::wire::sign::{Credentials, SignatureVersion};
use serde_json::{Value, json};

use crate::harness::fixture::Fixture;
use crate::harness::simulator::{ACCESS_KEY_ID, ACCESS_KEY_SECRET, PROJECT, StoredLog};
use crate::verify::{RUN, run_id, sent, tag, verified};

/// How the data is wrong, and what each level says of it; "–": nothing.
struct Case {
    name: &'static str,
    counts: &'static str,
    content: &'static str,
}

impl Case {
    /// Damages what was sent, and holds both levels to what they must say.
    #[track_caller]
    fn holds(&self, damage: impl FnOnce(&Fixture)) {
        let fixture = sent();
        damage(&fixture);
        self.holds_for(&fixture);
    }

    #[track_caller]
    fn holds_for(&self, fixture: &Fixture) {
        let Self { name, counts, content } = self;
        let line = format!("| {name} | {counts} | {content} |");
        let documented = include_str!("../../../docs/verify.md");
        assert!(documented.contains(&line), "docs/verify.md lacks `{line}`");
        for (level, wanted, seen) in [
            ("counts", counts, counted as fn(&Value) -> Vec<String>),
            ("content", content, pulled as fn(&Value) -> Vec<String>),
        ] {
            let arguments = format!("--level {level} --tables workflow_runs");
            let (outcome, json) = verified(fixture, &arguments);
            let told = seen(&json["tables"]["workflow_runs"]);
            let told = if told.is_empty() { "–".to_owned() } else { told.join(", ") };
            assert_eq!(told, *wanted, "{level}\n{outcome}");
            let code = match *wanted {
                "–" | "expired" => 0,
                "not_known" => 75,
                _ => 4,
            };
            outcome.exits(code);
        }
    }
}

/// What `counts` says is wrong with any day.
fn counted(table: &Value) -> Vec<String> {
    let days = table["days"].as_array().unwrap();
    let any = |is: &dyn Fn(&Value) -> bool| days.iter().any(is);
    let mut told = Vec::new();
    for kind in ["missing", "doubled", "surplus", "unaccounted", "gone"] {
        if any(&|day| day[kind] != "0") {
            told.push(kind.to_owned());
        }
    }
    for verdict in ["expired", "not_known"] {
        if any(&|day| day["verdict"] == verdict) {
            told.push(verdict.to_owned());
        }
    }
    told
}

/// What `content` says is wrong with any batch or row.
fn pulled(table: &Value) -> Vec<String> {
    let findings = table["findings"].as_array().unwrap();
    let mut kinds: Vec<_> =
        findings.iter().map(|finding| finding["kind"].as_str().unwrap().to_owned()).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

const LOGSTORE: &str = "workflow_execution";

fn tamper(fixture: &Fixture, change: &Value) {
    fixture.sls.tamper(LOGSTORE, change);
}

/// Stores logs as they are under other tags.
fn store(fixture: &Fixture, logstore: &str, logs: &[StoredLog], tags: &[(&str, &str)]) {
    let client = Client::new(ClientSettings {
        endpoint: Endpoint::parse(&format!("http://127.0.0.1:{}", fixture.sls.port), PROJECT)
            .unwrap(),
        region: "cn-hangzhou".to_owned(),
        credentials: Credentials {
            access_key_id: ACCESS_KEY_ID.to_owned(),
            access_key_secret: Secret::new(ACCESS_KEY_SECRET),
            security_token: None,
        },
        signature: SignatureVersion::V4,
        deadline: Duration::from_secs(10),
        ca_certificates: Vec::new(),
    })
    .unwrap();
    let mut group = LogGroupWriter::default();
    for log in logs {
        group.begin_log(log.time, 0);
        for (key, value) in &log.contents {
            group.field(key, value.as_bytes());
        }
        group.end_log();
    }
    let mut all: BTreeMap<&str, &str> = logs[0]
        .tags
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str().unwrap()))
        .collect();
    all.extend(tags.iter().copied());
    group.finish(Some(""), Some("dify-sls-backfill"), &all.into_iter().collect::<Vec<_>>());
    let put = Put {
        logstore,
        hash_key: "0123456789abcdef0123456789abcdef",
        number: 1,
        body: &Lz4::default().compress(group.bytes()),
        raw_size: group.bytes().len(),
        signed_at: client.now(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(client.put(&put)).unwrap();
}

/// The logs of a batch.
pub(crate) fn logs_of(fixture: &Fixture, tag: &str) -> Vec<StoredLog> {
    let logs = fixture.sls.logs(LOGSTORE).into_iter();
    logs.filter(|log| log.tags["__batch__"] == tag).collect()
}

/// Stores a batch once more, as if on its second sending.
pub(crate) fn send_twice(fixture: &Fixture, tag: &str) {
    let logs = logs_of(fixture, tag);
    store(fixture, LOGSTORE, &logs, &[("__batch__", tag), ("__attempt__", "2")]);
}

fn log(fixture: &Fixture, nth: u32) -> Value {
    json!({"id": run_id(fixture, nth)})
}

#[test]
fn a_log_is_missing() {
    Case { name: "a log is missing", counts: "missing", content: "missing" }
        .holds(|fixture| tamper(fixture, &json!({"drop_log": log(fixture, 3)})));
}

#[test]
fn a_batch_is_missing() {
    Case { name: "a batch is missing", counts: "missing", content: "missing" }
        .holds(|fixture| tamper(fixture, &json!({"drop_batch": tag(fixture, 1)})));
}

#[test]
fn a_batch_is_there_twice() {
    Case { name: "a batch is there twice", counts: "doubled", content: "doubled" }
        .holds(|fixture| tamper(fixture, &json!({"double_batch": tag(fixture, 1)})));
}

#[test]
fn a_log_is_there_three_times() {
    let name = "a log is there three times (cancels in an XOR)";
    Case { name, counts: "doubled", content: "doubled" }.holds(|fixture| {
        for _ in 0..2 {
            tamper(fixture, &json!({"double_log": log(fixture, 3)}));
        }
    });
}

#[test]
fn a_byte_is_another() {
    Case { name: "a byte of a log is another", counts: "–", content: "changed" }.holds(|fixture| {
        let change = json!({"log": log(fixture, 3), "field": "outputs", "at": 1});
        tamper(fixture, &json!({"flip_byte": change}));
    });
}

#[test]
fn a_byte_where_sql_truncates_is_another() {
    let name = "a byte beyond the first 2 KB, where SQL truncates";
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(30, 10);
    let id = run_id(&fixture, 3);
    fixture.database.psql(&format!(
        "UPDATE workflow_runs SET outputs = '{{\"a\": \"' || repeat('x', 20000) || '\"}}' \
         WHERE id = '{id}'"
    ));
    fixture.tool(RUN).run().exits(0);
    let change = json!({"log": {"id": id}, "field": "outputs", "at": 18_000});
    tamper(&fixture, &json!({"flip_byte": change}));
    Case { name, counts: "–", content: "changed" }.holds_for(&fixture);
}

#[test]
fn a_field_is_missing() {
    Case { name: "a field of a log is missing", counts: "–", content: "changed" }.holds(
        |fixture| {
            let change = json!({"log": log(fixture, 3), "field": "version"});
            tamper(fixture, &json!({"remove_field": change}));
        },
    );
}

#[test]
fn an_empty_text_stands_for_no_value() {
    let name = "an empty text where `{}` belongs";
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(30, 10);
    let id = run_id(&fixture, 3);
    fixture.database.psql(&format!("UPDATE workflow_runs SET outputs = NULL WHERE id = '{id}'"));
    fixture.tool(RUN).run().exits(0);
    let change = json!({"log": {"id": id}, "field": "outputs", "value": ""});
    tamper(&fixture, &json!({"set_field": change}));
    // In Postgres both give the same log.
    fixture.database.psql("UPDATE workflow_runs SET error = '' WHERE error IS NULL");
    Case { name, counts: "–", content: "changed" }.holds_for(&fixture);
}

#[test]
fn two_logs_are_swapped_between_batches() {
    let name = "two logs are swapped between batches";
    Case { name, counts: "–", content: "changed" }.holds(|fixture| {
        let (first, last) = (tag(fixture, 0), tag(fixture, 2));
        let id = |tag: &str| logs_of(fixture, tag)[0].field("id").to_owned();
        let logs = json!([{"id": id(&first)}, {"id": id(&last)}]);
        tamper(fixture, &json!({"swap_logs": logs}));
    });
}

#[test]
fn a_time_is_of_another_day() {
    let name = "a log's time is of another day";
    Case { name, counts: "missing, surplus", content: "changed" }
        .holds(|fixture| shift(fixture, 86_400));
}

#[test]
fn a_time_is_a_minute_off() {
    let name = "a log's time is a minute off";
    let fixture = sent();
    // Far from midnight.
    let sql = "SELECT id FROM workflow_runs WHERE finished_at IS NOT NULL \
        AND finished_at::time BETWEEN '02:00' AND '22:00' ORDER BY created_at LIMIT 1";
    let id = fixture.database.psql(sql).trim().to_owned();
    let time = time_of(&fixture, &id) + 60;
    tamper(&fixture, &json!({"set_time": {"log": {"id": id}, "time": time}}));
    Case { name, counts: "–", content: "changed" }.holds_for(&fixture);
}

fn time_of(fixture: &Fixture, id: &str) -> u32 {
    let logs = fixture.sls.logs(LOGSTORE);
    logs.iter().find(|log| log.field("id") == id).unwrap().time
}

fn shift(fixture: &Fixture, seconds: u32) {
    let id = run_id(fixture, 3);
    let time = time_of(fixture, &id) + seconds;
    tamper(fixture, &json!({"set_time": {"log": {"id": id}, "time": time}}));
}

#[test]
fn a_batch_is_in_the_other_logstore() {
    let name = "a batch is in the other logstore";
    let fixture = sent();
    let tag = tag(&fixture, 1);
    let logs = logs_of(&fixture, &tag);
    store(&fixture, "workflow_node_execution", &logs, &[("__batch__", &tag)]);
    tamper(&fixture, &json!({"drop_batch": tag}));
    Case { name, counts: "missing", content: "missing" }.holds_for(&fixture);
    let (outcome, json) = verified(&fixture, "--level content --tables workflow_node_executions");
    let nodes = &json["tables"]["workflow_node_executions"];
    assert_eq!(nodes["in_sls"]["foreign"]["batches"], "1", "{outcome}");
    outcome.exits(4);
}

#[test]
fn logs_came_before_the_index() {
    let name = "logs were received before there was an index";
    Case { name, counts: "missing", content: "–" }.holds(|fixture| {
        fixture.sls.call("DELETE", &format!("/logstores/{LOGSTORE}/index"), &[], "");
        fixture.tool("init").run().exits(0);
    });
}

#[test]
fn logs_are_older_than_the_ttl() {
    let name = "logs are older than the TTL";
    Case { name, counts: "expired", content: "–" }.holds(|fixture| {
        let path = format!("/logstores/{LOGSTORE}");
        let mut logstore: Value =
            serde_json::from_str(&fixture.sls.call("GET", &path, &[], "")).unwrap();
        logstore["ttl"] = 10.into();
        fixture.sls.call("PUT", &path, &[], &logstore.to_string());
    });
}

#[test]
fn a_given_up_batch_is_there() {
    let name = "a batch was given up, yet it is there";
    let fixture = sent();
    fixture.database.psql(
        "WITH given_up AS (UPDATE sls_backfill.batch SET state = 'abandoned' \
           WHERE id = (SELECT id FROM sls_backfill.batch ORDER BY id LIMIT 1) RETURNING id) \
         DELETE FROM sls_backfill.live_workflow_runs \
         WHERE batch_id IN (SELECT id FROM given_up)",
    );
    // Its rows are in no live batch now, which is told as well.
    let (outcome, json) = verified(&fixture, "--level content --tables workflow_runs");
    let told = pulled(&json["tables"]["workflow_runs"]);
    assert_eq!(told, ["given_up", "unaccounted"], "{outcome}");
    outcome.exits(4).tells("hint: `dify-sls-backfill audit` takes them back");
    let (outcome, json) = verified(&fixture, "--level counts --tables workflow_runs");
    assert_eq!(counted(&json["tables"]["workflow_runs"]), ["surplus", "unaccounted"], "{outcome}");
    let line = format!("| {name} | surplus | given_up |");
    assert!(include_str!("../../../docs/verify.md").contains(&line));
}

#[test]
fn a_tag_is_unknown() {
    let name = "a batch of a tag that the ledger lacks";
    let fixture = sent();
    let logs = logs_of(&fixture, &tag(&fixture, 1));
    let strange: Vec<_> = logs
        .into_iter()
        .map(|mut log| {
            log.contents[0].1.replace_range(..8, "ffffffff");
            log
        })
        .collect();
    assert_eq!(strange[0].contents[0].0, "id");
    let unknown =
        format!("{}/{}", tag(&fixture, 1).split('/').next().unwrap(), uuid::Uuid::now_v7());
    store(&fixture, LOGSTORE, &strange, &[("__batch__", &unknown)]);
    Case { name, counts: "surplus", content: "foreign" }.holds_for(&fixture);
}

#[test]
fn a_row_has_changed() {
    let name = "a row has changed in Postgres since";
    let fixture = sent();
    let id = run_id(&fixture, 3);
    let sql = format!("UPDATE workflow_runs SET total_tokens = 999999 WHERE id = '{id}'");
    fixture.database.psql(&sql);
    Case { name, counts: "–", content: "source_changed" }.holds_for(&fixture);
    let (_, json) = verified(&fixture, "--level content --tables workflow_runs");
    let finding = &json["tables"]["workflow_runs"]["findings"][0];
    assert_eq!((&finding["rows"], &finding["row_ids"]), (&json!("1"), &json!([id])));
}

#[test]
fn a_row_has_left() {
    let name = "a row has left Postgres since";
    let fixture = sent();
    let (gone, changed) = (run_id(&fixture, 3), run_id(&fixture, 4));
    fixture.database.psql(&format!("DELETE FROM workflow_runs WHERE id = '{gone}'"));
    Case { name, counts: "gone", content: "source_gone" }.holds_for(&fixture);
    // Beside it in the same batch, one that has changed is found as well.
    fixture
        .database
        .psql(&format!("UPDATE workflow_runs SET version = 'x' WHERE id = '{changed}'"));
    let (_, json) = verified(&fixture, "--level content --tables workflow_runs");
    let findings = json["tables"]["workflow_runs"]["findings"].as_array().unwrap().clone();
    let of = |kind: &str| findings.iter().find(|finding| finding["kind"] == kind).unwrap().clone();
    assert_eq!(of("source_gone")["row_ids"], json!([gone]));
    assert_eq!(of("source_changed")["row_ids"], json!([changed]));
}

#[test]
fn a_new_row_lies_in_a_closed_window() {
    let name = "a new row lies in a window that is closed";
    Case { name, counts: "unaccounted", content: "unaccounted" }.holds(|fixture| {
        fixture.insert("workflow_runs", json!({"id": "00000000-0000-4000-8000-00000000000a"}));
    });
}

#[test]
fn the_shards_are_split() {
    let name = "the shards were split meanwhile";
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(120, 20);
    fixture.tool(&format!("{RUN} --max-rows 60")).run().exits(75);
    fixture.split_shards();
    fixture.tool(RUN).run().exits(0);
    Case { name, counts: "–", content: "–" }.holds_for(&fixture);
}

#[test]
fn answers_are_incomplete_now_and_then() {
    let name = "SLS's answers are incomplete now and then";
    Case { name, counts: "–", content: "–" }
        .holds(|fixture| fixture.sls.switch(&json!({"incomplete_every": 2})));
}

#[test]
fn answers_are_incomplete_for_good() {
    let name = "SLS's answers are incomplete for good";
    Case { name, counts: "not_known", content: "–" }
        .holds(|fixture| fixture.sls.switch(&json!({"incomplete_every": 1})));
}
