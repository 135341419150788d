//! `purge`: nothing leaves Postgres that SLS does not hold, equal, now and for long enough.

mod back;
mod beside;
mod gates;
mod json;
mod kills;
mod proofs;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;

use crate::harness::at_once;
use crate::harness::cluster::Cluster;
use crate::harness::database::Database;
use crate::harness::fixture::{Fixture, TABLES};
use crate::harness::tool::Tool;

const NODES: &str = "workflow_node_executions";

/// A migrated history of 120 runs of 20 days, whose batches are small.
fn migrated() -> Fixture {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(120, 20);
    fixture.tool("run --batch-kib 64").run().exits(0);
    fixture
}

fn purge(fixture: &Fixture, more: &str) -> Tool {
    fixture.tool(&format!("purge --older-than 0h --execute --yes{more}"))
}

fn count(database: &Database, table: &str) -> u64 {
    database.psql(&format!("SELECT count(*) FROM {table}")).trim().parse().unwrap()
}

/// The batch that a row is in.
fn batch_of(fixture: &Fixture, id: &str) -> String {
    let sql = format!(
        "SELECT batch_id FROM sls_backfill.batch_rows WHERE position(uuid_send('{id}'::uuid) IN \
         row_ids) > 0"
    );
    fixture.database.psql(&sql).trim().to_owned()
}

#[test]
fn a_plan_writes_nothing_and_says_what_would_go() {
    let fixture = migrated();
    let before = fixture.database.psql("SELECT sum(xmin::text::int8) FROM sls_backfill.batch");
    fixture
        .tool("purge --older-than 0h")
        .run()
        .exits(0)
        .prints("workflow_runs: rows that finished before")
        .prints("together")
        .prints("nothing was deleted: `purge --execute`");
    let after = fixture.database.psql("SELECT sum(xmin::text::int8) FROM sls_backfill.batch");
    assert_eq!(before, after);
    assert_eq!(count(&fixture.database, "workflow_runs"), 120);
    let json = fixture.tool("purge --older-than 0h --output json").run().exits(0);
    let plan: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(plan["plan"][NODES]["total"]["proved"], "472");
}

#[test]
fn a_plan_names_what_is_slow_what_stays_and_which_columns_keep_rows() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(60, 5);
    fixture
        .tool("run --batch-kib 64")
        .env("LOGSTORE_ENABLE_PUT_GRAPH_FIELD", "false")
        .run()
        .exits(0);
    fixture.database.psql(
        "DROP INDEX workflow_node_execution_workflow_run_id_idx; \
         ALTER TABLE workflow_node_execution_offload \
           DROP CONSTRAINT workflow_node_execution_offload_node_execution_id_key; \
         CREATE TABLE own_notes (run uuid REFERENCES workflow_runs); \
         ALTER TABLE workflow_runs ADD COLUMN came_later text",
    );
    fixture
        .tool("purge --older-than 0h")
        .run()
        .exits(0)
        .prints("no index of workflow_node_executions begins with workflow_run_id: Dify finds")
        .prints("no index of workflow_node_execution_offload begins with node_execution_id")
        .prints("CREATE INDEX CONCURRENTLY ON public.\"own_notes\" (\"run\")")
        .prints("59 rows have logs that leave graph out")
        .prints("59 rows were sent before the table had came_later")
        .prints("stay as they are: workflow_app_logs (about ");
    let json = fixture.tool("purge --older-than 0h --output json").run().exits(0);
    let plan: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let runs = &plan["plan"]["workflow_runs"];
    let batches = "SELECT count(*) FROM sls_backfill.batch WHERE table_name = 'workflow_runs'";
    assert_eq!(runs["total"]["proved_batches"], fixture.database.psql(batches), "{runs}");
    assert_eq!(runs["missing_indexes"].as_array().unwrap().len(), 1, "{runs}");
}

#[test]
fn every_proved_row_goes_and_what_is_not_finished_stays() {
    let fixture = migrated();
    let stored: Vec<_> = TABLES.map(|(_, logstore)| fixture.stored(logstore)).into();
    purge(&fixture, " --vacuum").run().exits(0).prints("workflow_runs: 118 rows deleted");
    assert_eq!(count(&fixture.database, "workflow_runs"), 2, "those that run");
    assert_eq!(count(&fixture.database, NODES), 8);
    let now: Vec<_> = TABLES.map(|(_, logstore)| fixture.stored(logstore)).into();
    assert_eq!(stored, now);
    let states = "SELECT DISTINCT state FROM sls_backfill.batch";
    assert_eq!(fixture.database.psql(states).trim(), "purged");
    purge(&fixture, "").run().exits(0).prints("workflow_runs: 0 rows deleted");
    // Nothing that was purged is sent again or missed.
    fixture.tool("run").run().exits(0).tells("nothing new to do");
}

#[test]
fn what_only_a_verification_has_proved_can_go() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(60, 10);
    fixture.tool("run --batch-kib 64 --verify none").run().exits(0);
    purge(&fixture, "").run().exits(0).prints("workflow_runs: 0 rows deleted");
    fixture.tool("verify --level content").run().exits(0);
    purge(&fixture, "").run().exits(0).prints("workflow_runs: 59 rows deleted");
    assert_eq!(count(&fixture.database, NODES), 4);
}

#[test]
fn a_row_that_changed_after_its_proof_survives_and_is_listed() {
    let fixture = migrated();
    let id = fixture.finished("workflow_runs")[3].clone();
    fixture.database.psql(&format!(
        "UPDATE workflow_runs SET outputs = '{{\"a\": \"mended\"}}' WHERE id = '{id}'"
    ));
    purge(&fixture, "")
        .run()
        .exits(0)
        .prints("117 rows deleted")
        .prints("1 stay because they changed")
        .prints(&format!("changed: {id}"));
    let left = fixture.database.psql("SELECT id FROM workflow_runs WHERE status <> 'running'");
    assert_eq!(left.trim(), id);
}

#[test]
fn a_column_that_came_later_keeps_its_row_unless_it_is_null() {
    let fixture = migrated();
    let id = fixture.finished("workflow_runs")[0].clone();
    fixture.database.psql("ALTER TABLE workflow_runs ADD COLUMN came_later text");
    fixture.database.psql(&format!("UPDATE workflow_runs SET came_later = 'x' WHERE id = '{id}'"));
    purge(&fixture, " --tables workflow_runs").run().exits(0).prints("117 rows deleted");
    let left = fixture.database.psql("SELECT id FROM workflow_runs WHERE status <> 'running'");
    assert_eq!(left.trim(), id);
}

#[test]
fn nothing_is_deleted_that_sls_does_not_hold_any_more() {
    at_once([false, true], |made_anew| {
        let fixture = migrated();
        for (_, logstore) in TABLES {
            fixture.delete_logstore(logstore);
        }
        if made_anew {
            fixture.tool("init --ttl-days 3650").run().exits(0);
        }
        let outcome = purge(&fixture, "").run();
        assert!([3, 4].contains(&outcome.status.code().unwrap()), "{outcome}");
        assert_eq!(count(&fixture.database, "workflow_runs"), 120, "{outcome}");
        assert_eq!(count(&fixture.database, NODES), 480, "{outcome}");
    });
}

#[test]
fn what_an_audit_has_found_goes_only_once_it_is_known_how_it_was_made() {
    let fixture = migrated();
    let tagged: BTreeSet<_> = fixture
        .sls
        .logs("workflow_execution")
        .iter()
        .map(|log| log.tags["__conversion__"].as_str().unwrap_or_default().to_owned())
        .collect();
    let fingerprint =
        "SELECT fingerprint FROM sls_backfill.conversion WHERE table_name = 'workflow_runs'";
    assert_eq!(tagged, BTreeSet::from([fixture.database.psql(fingerprint)]));
    // A new ledger has no pass yet, and so no conversion.
    fixture.database.psql("DROP SCHEMA sls_backfill CASCADE");
    let audit = "audit --signature-life-s 2 --late-s 1 --visible-s 1";
    fixture.tool(audit).run().exits(0);
    fixture
        .tool("purge --older-than 0h")
        .run()
        .exits(0)
        .prints("118 rows stay: an audit found their logs");
    purge(&fixture, "").run();
    assert_eq!(count(&fixture.database, "workflow_runs"), 120);
    // The passes of a run have one; what is adopted bears its name.
    fixture.tool("run").run().exits(0).tells("nothing new to do");
    fixture.tool(audit).run().exits(0);
    purge(&fixture, "").run().exits(0).prints("workflow_runs: 118 rows deleted");
    assert_eq!(count(&fixture.database, "workflow_runs"), 2, "those that run");
}

#[test]
fn what_the_logstore_does_not_keep_long_enough_stays() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(120, 20);
    fixture.tool("run").run().exits(0);
    for (_, logstore) in TABLES {
        let body = json!({"logstoreName": logstore, "ttl": 185, "shardCount": 2}).to_string();
        fixture.sls.call("PUT", &format!("/logstores/{logstore}"), &[], &body);
    }
    let outcome = purge(&fixture, "").run().exits(0);
    assert!(count(&fixture.database, "workflow_runs") > 80, "older than five days:\n{outcome}");
    purge(&fixture, " --keep 100").run().exits(0);
    assert_eq!(count(&fixture.database, "workflow_runs"), 2);
}

#[test]
fn a_node_stays_while_its_run_is_not_finished_or_paused() {
    let fixture = migrated();
    let runs = fixture.finished("workflow_runs");
    fixture.database.psql(&format!(
        "UPDATE workflow_runs SET status = 'running', finished_at = NULL WHERE id = '{}'",
        runs[0]
    ));
    fixture.database.psql(&format!(
        "INSERT INTO workflow_pauses (workflow_id, workflow_run_id, state_object_key, id) \
         VALUES ('{0}', '{0}', 'k', '{0}')",
        runs[1]
    ));
    purge(&fixture, "").run().exits(0).prints("stay: its run is paused");
    let nodes = fixture.database.psql(&format!(
        "SELECT count(DISTINCT workflow_run_id) FROM {NODES} WHERE workflow_run_id IN ('{}', '{}')",
        runs[0], runs[1]
    ));
    assert_eq!(nodes.trim(), "2");
    let left = fixture.database.psql(&format!(
        "SELECT count(*) FROM workflow_runs WHERE id IN ('{}', '{}')",
        runs[0], runs[1]
    ));
    assert_eq!(left.trim(), "2");
}

#[test]
fn a_row_that_dify_locks_makes_us_wait_for_its_time_and_go_on_another_day() {
    let fixture = migrated();
    let id = fixture.finished("workflow_runs")[5].clone();
    let locked = fixture.database.hold_row("workflow_runs", &id);
    purge(&fixture, " --tables workflow_runs --lock-timeout-ms 50").run().exits(75);
    assert!(count(&fixture.database, "workflow_runs") >= 3);
    drop(locked);
    purge(&fixture, " --tables workflow_runs").run().exits(0);
    assert_eq!(count(&fixture.database, "workflow_runs"), 2);
}

#[test]
fn a_trigger_is_refused_unless_told() {
    let fixture = migrated();
    fixture.database.psql(
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'; \
         CREATE TRIGGER own BEFORE DELETE ON workflow_runs FOR EACH ROW EXECUTE FUNCTION nothing()",
    );
    purge(&fixture, "").run().exits(3).tells("it has a trigger, own");
    assert_eq!(count(&fixture.database, "workflow_runs"), 120);
    // One that swallows the deletion is noticed, and all is taken back.
    fixture.database.psql(
        "CREATE OR REPLACE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql \
         AS 'BEGIN RETURN NULL; END'",
    );
    purge(&fixture, " --despite-oddities --tables workflow_runs")
        .run()
        .exits(70)
        .tells("all was taken back");
    assert_eq!(count(&fixture.database, "workflow_runs"), 120);
    let purged = "SELECT count(*) FROM sls_backfill.batch WHERE state = 'purged'";
    assert_eq!(fixture.database.psql(purged).trim(), "0");
}

#[test]
fn in_another_database_nothing_is_deleted_noted_or_put_back() {
    let fixture = migrated();
    purge(&fixture, " --tables workflow_node_executions").run().exits(0);
    let cluster = Arc::new(Cluster::start(&[]));
    let elsewhere = Database::fresh_in(&cluster).shape("dify-1.12");
    let marks = "SELECT sum(purged_rows), sum(purged_gone) FROM sls_backfill.batch";
    let before = fixture.database.psql(marks);
    purge(&fixture, &format!(" --purge-url {}", elsewhere.url()))
        .run()
        .exits(3)
        .tells("the source is not the one it was");
    fixture
        .tool(&format!("restore --since 2000-01-01 --execute --purge-url {}", elsewhere.url()))
        .run()
        .exits(3)
        .tells("the source is not the one it was");
    assert_eq!(fixture.database.psql(marks), before);
    assert_eq!(count(&elsewhere, NODES), 0);
}

#[test]
fn whoever_does_not_confirm_deletes_nothing() {
    let fixture = migrated();
    fixture.tool("purge --older-than 0h --execute").run().exits(2).tells("say --yes");
    assert_eq!(count(&fixture.database, NODES), 480);
}

#[test]
fn in_two_databases_a_crash_between_them_counts_every_row_once() {
    let fixture = Fixture::new("dify-1.12");
    let elsewhere = Database::fresh();
    fixture.fill(120, 20);
    let ledger = elsewhere.url();
    let tool = |what: &str| fixture.tool(what).env("SLS_BACKFILL_LEDGER_URL", ledger.as_str());
    tool("run --batch-kib 64 --no-probe").run().exits(0);
    // The ledger stops to take the marks as they turned out; the rows are deleted by then.
    elsewhere.psql(
        "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF OLD.state = 'purging' THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER stop BEFORE UPDATE ON sls_backfill.batch \
         FOR EACH ROW EXECUTE FUNCTION stop()",
    );
    let purge = "purge --older-than 0h --execute --yes --tables workflow_runs";
    tool(purge).run().exits(70);
    assert!(count(&fixture.database, "workflow_runs") < 120);
    elsewhere.psql("DROP TRIGGER stop ON sls_backfill.batch");
    tool(purge).run().exits(0);
    assert_eq!(count(&fixture.database, "workflow_runs"), 2);
    let marks = elsewhere.psql(
        "SELECT sum(purged_rows), sum(purged_gone), sum(purged_changed) FROM sls_backfill.batch \
         WHERE table_name = 'workflow_runs'",
    );
    assert_eq!(marks.trim(), "118|0|0");
}

#[test]
fn two_purges_at_once_count_no_row_twice() {
    let fixture = migrated();
    let first = purge(&fixture, "").spawn();
    let second = purge(&fixture, "").spawn();
    let (first, second) = (first.wait(), second.wait());
    assert!([0, 75].contains(&first.status.code().unwrap()), "{first}");
    assert!([0, 75].contains(&second.status.code().unwrap()), "{second}");
    purge(&fixture, "").run().exits(0);
    let purged = "SELECT sum(purged_rows), sum(purged_gone) FROM sls_backfill.batch";
    assert_eq!(fixture.database.psql(purged).trim(), "590|0");
}

#[test]
fn a_changed_byte_in_sls_keeps_its_batch() {
    let fixture = migrated();
    let id = fixture.finished("workflow_runs")[7].clone();
    let batch = batch_of(&fixture, &id);
    // The ledger wants something else than SLS holds: as if SLS had changed.
    fixture.database.psql(&format!(
        "UPDATE sls_backfill.batch SET digest = set_byte(digest, 0, (get_byte(digest, 0) + 1) % 256) \
         WHERE id = '{batch}'"
    ));
    purge(&fixture, "").run().exits(4).tells("SLS holds something else than was sent");
    let left =
        fixture.database.psql(&format!("SELECT count(*) FROM workflow_runs WHERE id = '{id}'"));
    assert_eq!(left.trim(), "1");
}

#[test]
fn what_search_does_not_find_is_not_deleted() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(60, 20);
    fixture.sls.switch(&json!({"index_delay_ms": 3_600_000}));
    fixture.tool("run --no-canary-search").run().exits(0);
    purge(&fixture, "").run().exits(4).prints("SLS's search does not find every row");
    assert_eq!(count(&fixture.database, "workflow_runs"), 60);
    assert_eq!(count(&fixture.database, NODES), 240);
    fixture.sls.switch(&json!({"index_delay_ms": 0}));
    purge(&fixture, "").run().exits(0);
    assert_eq!(count(&fixture.database, "workflow_runs"), 1);
}

#[test]
fn a_run_for_cron_migrates_proves_and_purges() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(60, 20);
    let nightly = "run --purge --purge-older-than 5d";
    fixture.tool(nightly).run().exits(0);
    let old = "workflow_runs WHERE status <> 'running' \
               AND finished_at < (now() AT TIME ZONE 'UTC') - interval '5 days'";
    assert_eq!(count(&fixture.database, old), 0);
    assert!(count(&fixture.database, "workflow_runs") > 10);
    fixture.tool(nightly).run().exits(0).tells("nothing new to do");
}
