//! What anybody may write into the logstore under our tags, and what the ledger makes of it.

use std::collections::BTreeMap;

use dify_sls_backfill::wire::log_group::LogGroupWriter;
use serde_json::json;

use crate::faults::SHORT;
use crate::harness::fixture::Fixture;
use crate::trust::{AUDIT, RUNS, batches, group};

const NOW_S: u32 = 1_790_000_000;

/// Some runs that are in Postgres and not yet in SLS, and what is there.
fn half_moved() -> (Fixture, Vec<String>) {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    fixture.tool(SHORT).arg("--max-rows=100").run().exits(75);
    let stored = fixture.stored(RUNS);
    let mut unsent = fixture.finished("workflow_runs");
    unsent.retain(|id| !stored.contains(id));
    assert!(unsent.len() > 20);
    (fixture, unsent)
}

fn ledger_id(fixture: &Fixture) -> String {
    fixture.database.psql("SELECT id FROM sls_backfill.ledger").trim().to_owned()
}

/// Fails unless SLS holds each of our rows once, whatever else is there.
#[track_caller]
fn holds_ours_once(fixture: &Fixture) {
    let mut times: BTreeMap<String, u32> = BTreeMap::new();
    for log in fixture.sls.logs(RUNS).iter().filter(|log| log.contents.len() > 1) {
        *times.entry(log.field("id").to_owned()).or_default() += 1;
    }
    let once = fixture.finished("workflow_runs").into_iter().map(|id| (id, 1)).collect();
    assert_eq!(times, once);
}

/// What somebody writes who wants these rows to be taken for stored.
fn forged(ledger: &str, ids: &[String], rows: &str) -> Vec<u8> {
    let batch = format!("{ledger}/00000000-0000-7000-8000-000000000001");
    let logs: Vec<_> = ids.iter().map(|id| (NOW_S, id.as_str())).collect();
    let digest = "00".repeat(32);
    let tags = [("__batch__", batch.as_str()), ("__rows__", rows), ("__digest__", &digest)];
    group("dify-sls-backfill", &logs, &tags)
}

#[test]
fn forged_tags_of_this_ledger_stop_nothing_and_keep_no_row_from_being_sent() {
    let (fixture, unsent) = half_moved();
    let own = ledger_id(&fixture);
    fixture.sls.put(RUNS, &forged(&own, &unsent[..10], "10"));
    fixture.sls.put(RUNS, &forged(&own, &[], "0"));
    fixture.tool(SHORT).arg("--max-rows=1").run().exits(75).tells("not sealed by it");
    fixture.tool(AUDIT).run().exits(0).prints("passed over");
    fixture.tool(SHORT).run().exits(0);
    holds_ours_once(&fixture);
}

#[test]
fn forged_tags_of_a_ledger_that_never_was_keep_no_row_from_being_sent() {
    let (fixture, unsent) = half_moved();
    let nobody = "00000000-0000-4000-8000-00000000beef";
    // More rows than any batch has, and more than a number of the ledger holds.
    for rows in ["10", "99999999999", "many"] {
        fixture.sls.put(RUNS, &forged(nobody, &unsent[..10], rows));
    }
    fixture.tool(AUDIT).run().exits(0).prints("passed over");
    fixture.tool(SHORT).run().exits(0);
    holds_ours_once(&fixture);
    assert_eq!(batches(&fixture).split('|').next(), Some("proved"));
}

#[test]
fn forged_logs_under_the_name_of_a_batch_are_told_and_its_rows_can_be_purged_all_the_same() {
    let (fixture, _) = half_moved();
    fixture.tool(SHORT).run().exits(0);
    let sql = "SELECT l.id || '/' || b.id FROM sls_backfill.batch b, sls_backfill.ledger l \
               WHERE table_name = 'workflow_runs' LIMIT 1";
    let batch = fixture.database.psql(sql).trim().to_owned();
    let logs = [(NOW_S, "00000000-0000-4000-8000-00000000beef")];
    fixture.sls.put(RUNS, &group("dify-sls-backfill", &logs, &[("__batch__", &batch)]));
    let verify = "verify --level content --tables workflow_runs --signature-life-s 3 --late-s 1 \
                  --visible-s 1";
    fixture.tool(verify).run().exits(4).tells("under this ledger's name");
    let all = fixture.finished("workflow_runs").len();
    fixture
        .tool("purge --older-than 0h --tables workflow_runs --execute --yes")
        .run()
        .prints(&format!("workflow_runs: {all} rows deleted"));
}

#[test]
fn ledgers_that_were_dropped_one_after_the_other_vouch_for_what_they_have_sent() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    for _ in 0..2 {
        fixture.tool(SHORT).arg("--max-rows=50").run().exits(75);
        fixture.database.psql("DROP SCHEMA sls_backfill CASCADE");
        fixture.tool(SHORT).run().exits(3).tells("another ledger (");
        fixture.tool(AUDIT).run().exits(0);
    }
    fixture.tool("doctor").run().exits(0);
    fixture.tool(SHORT).run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_batch_without_readable_tags_is_adopted_and_never_proved() {
    let (fixture, unsent) = half_moved();
    // A ledger that was dropped, and what it has written went bad.
    let other = "00000000-0000-4000-8000-00000000beef";
    let name = format!("dify-sls-backfill-{}-1-runs", other.replace('-', ""));
    let body = json!({"consumerGroup": name, "timeout": 300, "order": false}).to_string();
    fixture.sls.call("POST", &format!("/logstores/{RUNS}/consumergroups"), &[], &body);
    fixture.sls.put(RUNS, &forged(other, &unsent[..10], "99999999999"));
    fixture.tool(SHORT).run().exits(3).tells("another ledger (");
    fixture.tool(AUDIT).run().exits(4);
    let state = format!("SELECT state, rows FROM sls_backfill.batch WHERE ledger_id = '{other}'");
    assert_eq!(fixture.database.psql(&state).trim(), "stored|10");
    fixture.tool(SHORT).run().exits(0);
    assert_eq!(fixture.database.psql(&state).trim(), "stored|10", "nothing proves it");
    let stored = fixture.stored(RUNS);
    assert!(unsent.iter().all(|id| stored.contains(id)), "what is there is not sent again");
}

#[test]
fn a_batch_that_is_there_a_second_time_is_proved_no_more() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(50, 10);
    fixture.tool(SHORT).arg("--tables=workflow_runs").run().exits(0);
    assert_eq!(batches(&fixture), "proved|2");
    // A copy of one of them: who may write to the logstore may do that.
    let logs = fixture.sls.logs(RUNS);
    let mut writer = LogGroupWriter::default();
    for log in logs.iter().filter(|log| log.tags == logs[0].tags) {
        writer.begin_log(log.time, 0);
        for (key, value) in &log.contents {
            writer.field(key, value.as_bytes());
        }
        writer.end_log();
    }
    let tags: BTreeMap<&str, &str> = logs[0]
        .tags
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str().unwrap()))
        .collect();
    let tags: Vec<_> = tags.into_iter().collect();
    writer.finish(Some(""), Some("dify-sls-backfill"), &tags);
    fixture.sls.put(RUNS, writer.bytes());
    fixture.tool(SHORT).arg("--tables=workflow_runs").run().exits(4);
    assert_eq!(batches(&fixture), "proved|1 stored|1");
}
