//! What `repair` does about what `verify` has found.

use serde_json::{Value, json};

use crate::harness::fixture::Fixture;
use crate::verify::cases::{logs_of, send_twice};
use crate::verify::{RUN, SHORT, run_id, sent, tag, verified};

const LOGSTORE: &str = "workflow_execution";

/// What the content of the runs is like.
fn content(fixture: &Fixture) -> (i32, Value) {
    let (outcome, json) = verified(fixture, "--level content --tables workflow_runs");
    (outcome.status.code().unwrap(), json["tables"]["workflow_runs"].clone())
}

fn repair(fixture: &Fixture, arguments: &str) -> crate::harness::tool::Outcome {
    fixture.tool(format!("repair --tables workflow_runs {arguments}").trim()).run()
}

#[test]
fn a_missing_batch_is_sent_again_by_the_next_run() {
    let fixture = sent();
    let missing = tag(&fixture, 1);
    let rows = logs_of(&fixture, &missing).len();
    fixture.sls.tamper(LOGSTORE, &json!({"drop_batch": missing}));
    assert_eq!(content(&fixture).0, 4);
    let before = fixture.database.psql("SELECT state FROM sls_backfill.batch ORDER BY id");
    repair(&fixture, "")
        .exits(0)
        .prints(&format!("{rows} rows of 1 batches would be sent again by the next run"))
        .tells("nothing was changed");
    let after = fixture.database.psql("SELECT state FROM sls_backfill.batch ORDER BY id");
    assert_eq!(before, after, "a plan changes nothing");
    repair(&fixture, "--execute").exits(0).tells("`dify-sls-backfill run` sends what was opened");
    fixture.tool(&format!("{RUN} {SHORT}")).run().exits(0);
    let logs = logs_of(&fixture, &missing);
    assert_eq!(logs.len(), rows, "it is there once");
    assert!(logs.iter().all(|log| log.tags["__attempt__"] == "2"), "{:?}", logs[0].tags);
    assert_eq!(fixture.stored(LOGSTORE), fixture.finished("workflow_runs"));
    let (code, json) = content(&fixture);
    assert_eq!((code, &json["verdict"]), (0, &json!("equal")));
    verified(&fixture, "--tables workflow_runs").0.exits(0);
}

#[test]
fn what_may_still_come_or_is_there_in_part_is_not_sent_again() {
    let fixture = sent();
    fixture.sls.tamper(LOGSTORE, &json!({"drop_batch": tag(&fixture, 1)}));
    fixture.sls.tamper(LOGSTORE, &json!({"drop_log": {"id": run_id(&fixture, 3)}}));
    fixture.database.psql("UPDATE sls_backfill.batch SET signed_at = now()");
    fixture
        .tool("verify --level content --tables workflow_runs")
        .run()
        .exits(75)
        .tells("in 20 minutes");
    repair(&fixture, "--execute").exits(4).tells("it may still be on its way");
    fixture.database.psql("UPDATE sls_backfill.batch SET signed_at = now() - interval '1 hour'");
    assert_eq!(content(&fixture).0, 4);
    // Signed once more since it was judged.
    fixture.database.psql("UPDATE sls_backfill.batch SET attempts = attempts + 1");
    repair(&fixture, "--execute")
        .exits(4)
        .tells("a part of it is there")
        .tells("it was sent since it was judged");
    let open = "SELECT count(*) FROM sls_backfill.batch WHERE state = 'intent'";
    assert_eq!(fixture.database.psql(open).trim(), "0");
}

#[test]
fn what_is_too_old_for_the_logstore_is_not_sent_again() {
    let fixture = sent();
    // The first rows are 20 days old.
    let oldest = fixture.database.psql(
        "SELECT l.id || '/' || b.id FROM sls_backfill.batch b, sls_backfill.ledger l \
         ORDER BY finished_first LIMIT 1",
    );
    fixture.sls.tamper(LOGSTORE, &json!({"drop_batch": oldest.trim()}));
    let path = format!("/logstores/{LOGSTORE}");
    let mut logstore: Value =
        serde_json::from_str(&fixture.sls.call("GET", &path, &[], "")).unwrap();
    logstore["ttl"] = 10.into();
    fixture.sls.call("PUT", &path, &[], &logstore.to_string());
    assert_eq!(content(&fixture).0, 4);
    repair(&fixture, "--execute").exits(4).tells("raise its TTL in SLS first");
}

#[test]
fn a_row_that_nothing_names_is_sent_by_the_next_run() {
    let fixture = sent();
    fixture.insert("workflow_runs", json!({"id": "00000000-0000-4000-8000-00000000000a"}));
    let (code, json) = content(&fixture);
    assert_eq!((code, &json["unaccounted_rows"]), (4, &json!("1")));
    fixture.tool(RUN).run().exits(0);
    assert_eq!(content(&fixture).1["unaccounted_rows"], "1", "no run looks there by itself");
    repair(&fixture, "--execute").exits(0).prints("1 rows are given to the next run");
    fixture.tool("status").run().exits(0).prints("held, late: 1");
    fixture.tool(RUN).run().exits(0);
    assert_eq!(fixture.stored(LOGSTORE), fixture.finished("workflow_runs"));
    fixture.tool("status").run().exits(0);
    assert_eq!(content(&fixture).0, 0);
    verified(&fixture, "--tables workflow_runs").0.exits(0);
    repair(&fixture, "--execute").exits(0).prints("nothing to repair");
}

#[test]
fn rows_that_left_postgres_are_noted() {
    let fixture = sent();
    let gone = run_id(&fixture, 3);
    fixture.database.psql(&format!("DELETE FROM workflow_runs WHERE id = '{gone}'"));
    assert_eq!(content(&fixture).0, 4);
    repair(&fixture, "--execute").exits(0).prints("1 rows of 1 batches are noted as gone");
    assert_eq!(content(&fixture).0, 0);
    verified(&fixture, "--tables workflow_runs").0.exits(0);
    // What is left of that batch is still compared, row by row.
    let changed = run_id(&fixture, 3);
    let sql = format!("UPDATE workflow_runs SET version = 'x' WHERE id = '{changed}'");
    fixture.database.psql(&sql);
    let (code, json) = content(&fixture);
    assert_eq!((code, &json["findings"][0]["row_ids"]), (4, &json!([changed])));
}

#[test]
fn a_copy_that_came_with_another_sending_is_hidden() {
    let fixture = sent();
    let doubled = tag(&fixture, 1);
    let rows = logs_of(&fixture, &doubled).len();
    send_twice(&fixture, &doubled);
    let id = doubled.split('/').nth(1).unwrap();
    fixture.database.psql(&format!("UPDATE sls_backfill.batch SET sendings = 2 WHERE id = '{id}'"));
    let (outcome, _) = verified(&fixture, "--tables workflow_runs");
    outcome.exits(4).tells("are in SLS more than once");
    assert_eq!(content(&fixture).0, 4);
    repair(&fixture, "").exits(0).prints(&format!("{rows} logs of 1 batches would be hidden"));
    repair(&fixture, "--execute").exits(0).prints("are hidden from search");
    let (outcome, _) = verified(&fixture, "--tables workflow_runs");
    outcome.exits(0);
}

#[test]
fn a_request_that_came_when_nothing_could_is_told_by_its_sending_and_hidden() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(60, 10);
    fixture.set_proven(false);
    // Else the later number on its lane would keep it out.
    fixture.sls.switch(&json!({"seqid": "ignored"}));
    // Stored long after the last moment at which it may be under way.
    let late = json!({"store_late_ms": {"after_ms": 9000, "answer": "cut"}});
    fixture.sls.order(&json!({"kind": "put", "action": late}));
    fixture.tool(&format!("{RUN} {SHORT} --workers 1")).run().exits(0).tells("1 sent again");
    fixture.sls.wait_until("late", 0);
    let sent_twice = "SELECT l.id || '/' || b.id FROM sls_backfill.batch b, sls_backfill.ledger l \
        WHERE b.sendings = 2";
    let copies = logs_of(&fixture, fixture.database.psql(sent_twice).trim());
    let sendings = |nth: &str| copies.iter().filter(|log| log.tags["__attempt__"] == nth).count();
    assert_eq!(sendings("1"), sendings("2"));
    assert_eq!(sendings("1") + sendings("2"), copies.len());
    assert_ne!(copies.len(), 0);
    assert_eq!(content(&fixture).0, 4);
    repair(&fixture, "--execute").exits(0).prints("are hidden from search");
    verified(&fixture, "--tables workflow_runs").0.exits(0);
}

#[test]
fn copies_that_cannot_be_told_apart_are_listed() {
    let fixture = sent();
    let doubled = tag(&fixture, 1);
    fixture.sls.tamper(LOGSTORE, &json!({"double_batch": doubled}));
    assert_eq!(content(&fixture).0, 4);
    repair(&fixture, "--execute")
        .exits(4)
        .tells("they cannot be told apart")
        .tells(&format!("found by: __tag__:__batch__: \"{doubled}\""));
    fixture.sls.switch(&json!({"soft_delete": "off"}));
    send_twice(&fixture, &tag(&fixture, 2));
    fixture.database.psql("UPDATE sls_backfill.batch SET sendings = 2");
    assert_eq!(content(&fixture).0, 4);
    repair(&fixture, "--execute").exits(4).tells("SLS does not hide it");
}

#[test]
fn nothing_is_repaired_unverified_or_beside_a_run() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(60, 10);
    fixture.tool(RUN).run().exits(0);
    repair(&fixture, "").exits(3).tells("hint: `dify-sls-backfill verify --level content`");
    assert_eq!(content(&fixture).0, 0);
    fixture.insert("workflow_runs", json!({"created_at": "2099-01-01 00:00:00"}));
    fixture.database.psql(
        "UPDATE workflow_runs SET created_at = now() AT TIME ZONE 'UTC' - interval '3 hours', \
         finished_at = now() AT TIME ZONE 'UTC' - interval '2 hours' WHERE created_at > now()",
    );
    let hold = json!({"kind": "put", "nth": 1, "times": 1, "action": "hold"});
    fixture.sls.order(&hold);
    let running = fixture.tool(RUN).spawn();
    fixture.sls.wait_until("held", 1);
    repair(&fixture, "--execute").exits(6).tells("nothing was done");
    fixture.sls.release();
    running.wait().exits(0);
}
