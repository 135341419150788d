//! Copies of the ledger, ledgers of the past and ledgers that were dropped: each is found before it
//! sends, and `audit` makes it fit again. The simulator's own count says that no row is there twice.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::harness::cluster::Cluster;
use crate::harness::database::Database;
use crate::harness::fixture::Fixture;
use crate::harness::poll;
use crate::harness::session::Sessions;
use crate::harness::tool::Tool;

/// A run whose processes look every 130 ms whether others are at work.
const RUN: &str = "run --signature-life-s 2 --late-s 1 --visible-s 1 --batch-kib 64 \
    --workers 2";
const AUDIT: &str = "audit --signature-life-s 2 --late-s 1 --visible-s 1";

/// As a disk snapshot would keep the ledger: the same tables with what was in them.
const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; CREATE SCHEMA snapshot; DO $$ DECLARE t name; BEGIN FOR t IN \
    SELECT tablename FROM pg_tables WHERE schemaname = 'sls_backfill' LOOP \
    EXECUTE format('CREATE TABLE snapshot.%I AS TABLE sls_backfill.%I', t, t); END LOOP; END $$; \
    COMMIT";

/// Puts it back, while nobody is at work.
const ROLL_BACK: &str = "SET session_replication_role = replica; DO $$ DECLARE t name; BEGIN \
    FOR t IN SELECT tablename FROM pg_tables WHERE schemaname = 'snapshot' LOOP \
    EXECUTE format('DELETE FROM sls_backfill.%I', t); \
    EXECUTE format('INSERT INTO sls_backfill.%I OVERRIDING SYSTEM VALUE \
      TABLE snapshot.%I', t, t); END LOOP; END $$";

/// What no disk snapshot tells: who the ledger is.
const FORGET_WHO: &str =
    "UPDATE sls_backfill.ledger SET own_identity = NULL, source_identity = NULL";

fn in_the(database: &Database, fixture: &Fixture, command: &str) -> Tool {
    Tool::new(command.split(' ')).envs(database.env()).envs(fixture.sls.env())
}

/// The audit makes the ledger fit, and a run over everything doubles and loses nothing.
#[track_caller]
fn audited_and_finished(fixture: &Fixture) {
    fixture.tool(AUDIT).run().exits(0).prints("the ledger knows all that SLS holds");
    fixture.tool(RUN).run().exits(0);
    fixture.holds_every_finished_row_once();
    fixture.tool(RUN).run().exits(0).tells("nothing new to do");
}

#[test]
fn a_dropped_ledger_is_made_anew_from_sls() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(400, 10);
    fixture.tool(RUN).arg("--max-rows=300").run().exits(75);
    fixture.database.psql("DROP SCHEMA sls_backfill CASCADE");
    for _ in 0..2 {
        fixture
            .tool(RUN)
            .run()
            .exits(3)
            .tells("another ledger (")
            .tells("`dify-sls-backfill audit`");
    }
    fixture.tool("audit --dry-run").run().exits(0).prints("another ledger (");
    fixture.tool(RUN).run().exits(3);
    let audited = fixture.tool(AUDIT).arg("--output=json").run().exits(0);
    let found: serde_json::Value = serde_json::from_str(audited.stdout.trim()).unwrap();
    assert_eq!(found["findings"]["foreign_rows"], 300, "{found}");
    let whose = "SELECT count(DISTINCT ledger_id), sum(rows) FROM sls_backfill.batch";
    assert_eq!(fixture.database.psql(whose), "1|300", "whose they are is not forgotten");
    fixture.tool(RUN).run().exits(0).tells("0 differ");
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_restored_schema_is_found_though_nothing_else_tells() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(400, 10);
    fixture.tool(RUN).arg("--max-rows=100").run().exits(75);
    fixture.database.psql(SNAPSHOT);
    fixture.tool(RUN).arg("--max-rows=200").run().exits(75);
    // As pg_restore does it: the tables are made anew.
    fixture.database.psql("ALTER TABLE sls_backfill.ledger RENAME TO old");
    fixture.database.psql(
        "CREATE TABLE sls_backfill.ledger (LIKE sls_backfill.old INCLUDING ALL); \
         DROP TABLE sls_backfill.old",
    );
    fixture.database.psql(ROLL_BACK);
    fixture.tool(RUN).run().exits(3).tells("its tables were recreated");
    audited_and_finished(&fixture);
}

#[test]
fn a_ledger_of_yesterday_meets_the_group_of_today() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(400, 10);
    fixture.tool(RUN).arg("--max-rows=100").run().exits(75);
    fixture.database.psql(SNAPSHOT);
    fixture.tool(RUN).arg("--max-rows=200").run().exits(75);
    fixture.database.psql(ROLL_BACK);
    fixture
        .tool(RUN)
        .run()
        .exits(3)
        .tells("a copy of this ledger has been at work, or this ledger");
    fixture
        .tool(RUN)
        .run()
        .exits(3)
        .tells("a copy of this ledger has been at work, or this ledger");
    audited_and_finished(&fixture);
    // It has kept how logs are made, and their tag names it.
    let adopted = "SELECT count(*) > 0, bool_and(conversion_id IS NOT NULL) \
        FROM sls_backfill.batch WHERE adopted_by IS NOT NULL";
    assert_eq!(fixture.database.psql(adopted), "t|t");
}

#[test]
fn a_ledger_that_went_back_within_one_run_meets_batches_that_it_lacks() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(600, 10);
    fixture.slow_down(20);
    let running = fixture.tool(RUN).spawn();
    poll("ten batches", Duration::from_secs(30), || {
        let batches = "SELECT count(*) FROM sls_backfill.batch WHERE state <> 'intent'";
        let batches = fixture.database.try_psql(batches).ok()?.parse::<u32>().ok()?;
        (batches >= 10).then_some(())
    });
    fixture.database.psql(SNAPSHOT);
    running.wait().exits(0);
    fixture.sls.forget_faults();
    fixture.database.psql(ROLL_BACK);
    fixture.tool(RUN).run().exits(3).tells("of this ledger, which the ledger lacks");
    audited_and_finished(&fixture);
}

#[test]
fn a_copy_of_the_database_knows_that_it_is_one() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    fixture.tool(RUN).arg("--max-rows=100").run().exits(75);
    let staging = fixture.database.copy();
    in_the(&staging, &fixture, RUN).run().exits(3).tells("it is in another database");
    fixture.tool(RUN).run().exits(0);
    fixture.holds_every_finished_row_once();
    in_the(&staging, &fixture, RUN).run().exits(3);
}

#[test]
fn of_two_copies_that_both_run_one_stops_and_an_audit_turns_it_round() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(400, 10);
    fixture.tool(RUN).arg("--max-rows=100").run().exits(75);
    let staging = fixture.database.copy();
    staging.psql(FORGET_WHO);
    fixture.tool(RUN).arg("--max-rows=100").run().exits(75);
    for _ in 0..2 {
        let stopped = in_the(&staging, &fixture, RUN).run().exits(3);
        stopped.tells("a copy of this ledger has been at work");
    }
    in_the(&staging, &fixture, AUDIT).run().exits(0).prints("100 rows");
    in_the(&staging, &fixture, RUN).arg("--max-rows=100").run().exits(75);
    fixture.tool(RUN).run().exits(3).tells("a copy of this ledger has been at work");
    audited_and_finished(&fixture);
    in_the(&staging, &fixture, RUN).run().exits(3);
}

#[test]
fn a_run_stops_when_a_copy_is_audited_meanwhile() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(1500, 10);
    fixture.tool(RUN).arg("--max-rows=100").run().exits(75);
    let staging = fixture.database.copy();
    staging.psql(FORGET_WHO);
    fixture.slow_down(50);
    let running = fixture.tool(RUN).spawn();
    poll("a batch of the second run", Duration::from_secs(30), || {
        let alive = "SELECT count(*) FROM sls_backfill.batch b JOIN sls_backfill.lane l \
                     ON l.id = b.lane_id JOIN sls_backfill.process p ON p.id = l.process_id \
                     WHERE p.ended_at IS NULL";
        (fixture.database.psql(alive) != "0").then_some(())
    });
    let audit = in_the(&staging, &fixture, AUDIT).spawn();
    running.wait().exits(3).tells("a copy of this ledger has been at work");
    audit.wait().exits(0);
    fixture.sls.forget_faults();
    in_the(&staging, &fixture, RUN).run().exits(0);
    fixture.tool(RUN).run().exits(3);
    audited_and_finished(&fixture);
}

#[test]
fn a_process_that_slept_through_the_audit_of_another_ledger_sends_nothing_more() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(400, 10);
    fixture.tool(RUN).arg("--max-rows=100").run().exits(75);
    let staging = fixture.database.copy();
    staging.psql(FORGET_WHO);
    fixture.sls.switch(&json!({"signature_life_s": 2}));
    // Its next intent waits for a lock, and then it sleeps.
    fixture.database.psql(
        "CREATE FUNCTION sls_backfill.test_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         PERFORM pg_advisory_xact_lock(4712); RETURN NULL; END $$; CREATE CONSTRAINT TRIGGER \
         test_trigger AFTER INSERT ON sls_backfill.batch DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION sls_backfill.test_trigger()",
    );
    let lock = fixture.database.hold_lock(4712);
    let sleeper = fixture.tool(&RUN.replace("--workers 2", "--workers 1")).spawn();
    fixture.database.wait_for_a_waiting_lock();
    sleeper.signal("STOP");
    drop(lock);
    in_the(&staging, &fixture, AUDIT).run().exits(0);
    in_the(&staging, &fixture, RUN).run().exits(0);
    let puts = fixture.sls.stats()["put_ok"].clone();
    sleeper.signal("CONT");
    sleeper.wait().exits(3).tells("`dify-sls-backfill audit` looks into SLS");
    assert_eq!(fixture.sls.stats()["put_ok"], puts, "not even one request");
}

#[test]
fn a_replica_that_lacks_the_last_second_is_on_another_timeline() {
    let primary = Arc::new(Cluster::start(&[]));
    let fixture = Fixture::of(Database::fresh_in(&primary).shape("dify-1.12"));
    fixture.fill(400, 10);
    fixture.tool(RUN).arg("--max-rows=100").run().exits(75);
    let replica = primary.start_replica();
    let port = replica.port.to_string();
    let on_replica = |command: &str| fixture.tool(command).env("DB_PORT", &port);
    let sessions = Sessions::new(replica.port, &fixture.database.name);
    let psql = |sql: &str| sessions.run(sql).unwrap();
    let seen = "SELECT count(*) FROM sls_backfill.batch";
    let wanted = fixture.database.psql(seen);
    poll("the replica to follow", Duration::from_secs(30), || (psql(seen) == wanted).then_some(()));
    psql("ALTER SYSTEM SET primary_conninfo = ''");
    psql("SELECT pg_reload_conf()");
    poll("the replica to stand alone", Duration::from_secs(30), || {
        (psql("SELECT count(*) FROM pg_stat_wal_receiver") == "0").then_some(())
    });
    fixture.tool(RUN).arg("--max-rows=200").run().exits(75);
    psql("SELECT pg_promote()");
    assert_eq!(psql(seen), wanted, "the replica lacks what came last");
    on_replica(RUN).run().exits(3).tells("its Postgres is on another timeline");
    on_replica(AUDIT).run().exits(0);
    on_replica(RUN).run().exits(0);
    fixture.tool(RUN).run().exits(3).tells("a copy of this ledger");
    on_replica("status").run().exits(0);
    fixture.tool(AUDIT).run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_lost_answer_about_a_group_is_no_copy() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 10);
    // The first four calls look for the indexes, and how long logs are kept.
    let lost = json!({"kind": "admin", "nth": 5, "times": 1, "action": "cut_after"});
    fixture.sls.post("/_sim/faults", &lost);
    fixture.tool(RUN).run().exits(0).tells("-runs: no answer from SLS");
    fixture.tool(RUN).run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_kill_before_or_after_the_groups_are_made_costs_nothing() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 10);
    // Looks for two indexes, makes two groups, lists two, deletes two.
    for (nth, action) in
        [(3, "hold_before"), (4, "hold_after"), (5, "hold_before"), (7, "hold_after")]
    {
        let action = json!({action: {"then_cut": action == "hold_before"}});
        fixture.sls.post("/_sim/faults", &json!({"kind": "admin", "nth": nth, "action": action}));
        let running = fixture.tool(RUN).spawn();
        poll("the request that is held", Duration::from_secs(30), || {
            let faults: serde_json::Value =
                serde_json::from_str(&fixture.sls.get("/_sim/faults")).unwrap();
            (faults["held"] != json!(0)).then_some(())
        });
        running.kill();
        fixture.sls.post("/_sim/release", &json!({}));
        fixture.sls.forget_faults();
    }
    fixture.tool(RUN).run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn processes_that_begin_at_once_are_no_copies_of_each_other() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(800, 10);
    fixture.slow_down(30);
    let mut first = fixture.tool(RUN).spawn();
    first.wait_for("order time");
    let join = format!("{RUN} --join");
    let others: Vec<_> = (0..4).map(|_| fixture.tool(&join).spawn()).collect();
    for running in others {
        running.wait().exits(0);
    }
    first.wait().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn an_audit_that_was_killed_goes_on_and_a_second_one_finds_nothing_new() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    fixture.tool(RUN).arg("--max-rows=100").run().exits(75);
    fixture.database.psql("DROP SCHEMA sls_backfill CASCADE");
    let mut first = fixture.tool("audit --signature-life-s 20").spawn();
    first.wait_for("until no request that was signed before");
    first.kill();
    fixture.tool(RUN).run().exits(3).tells("an audit was begun and is not finished");
    fixture.tool(AUDIT).run().exits(0).tells("going on with the audit").prints(" 100 rows");
    let again = fixture.tool(AUDIT).arg("--output=json").run().exits(0);
    let found: serde_json::Value = serde_json::from_str(again.stdout.trim()).unwrap();
    assert_eq!(found["findings"]["rows"], 100, "{found}");
    assert_eq!(found["findings"]["foreign_rows"], 0, "{found}");
    fixture.tool(RUN).run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn an_audit_revives_a_batch_that_was_given_up_and_is_there() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 10);
    fixture.tool(RUN).run().exits(0);
    fixture.database.psql(
        "WITH given_up AS (UPDATE sls_backfill.batch SET state = 'abandoned' WHERE id = \
           (SELECT id FROM sls_backfill.batch WHERE table_name = 'workflow_runs' LIMIT 1) \
           RETURNING id, pass_id, rows), \
         released AS (DELETE FROM sls_backfill.live_workflow_runs \
           WHERE batch_id IN (SELECT id FROM given_up)) \
         INSERT INTO sls_backfill.hold (table_name, row_id, pass_id, reason, detail, created_at) \
         SELECT 'workflow_runs', encode(substring(row_ids FROM n * 16 + 1 FOR 16), 'hex')::uuid, \
         pass_id, 'invalid', '', now() AT TIME ZONE 'UTC' \
         FROM given_up JOIN sls_backfill.batch_rows ON batch_id = id, \
           generate_series(0, rows - 1) n",
    );
    fixture.tool(AUDIT).run().exits(0).prints("abandoned, but in SLS:             1 batches");
    fixture.tool(RUN).run().exits(0).tells("nothing new to do");
    fixture.holds_every_finished_row_once();
}

#[test]
fn an_intent_that_never_arrived_is_given_up_where_another_batch_has_its_rows() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    fixture.tool(RUN).arg("--max-rows=100").run().exits(75);
    let staging = fixture.database.copy();
    staging.psql(FORGET_WHO);
    fixture.sls.order(&json!({"kind": "put", "times": 1_000_000, "action": "cut_before"}));
    let running = fixture.tool(RUN).spawn();
    let intents = "SELECT count(*) FROM sls_backfill.batch WHERE state = 'intent'";
    poll("an intent", Duration::from_secs(30), || {
        (fixture.database.psql(intents) != "0").then_some(())
    });
    running.kill();
    fixture.sls.forget_faults();
    in_the(&staging, &fixture, RUN).run().exits(3);
    in_the(&staging, &fixture, AUDIT).run().exits(0);
    in_the(&staging, &fixture, RUN).run().exits(0);
    fixture.tool(RUN).run().exits(3);
    audited_and_finished(&fixture);
    assert_eq!(fixture.database.psql(intents), "0");
}

#[test]
fn a_short_life_of_signatures_is_for_a_local_sls_only() {
    let fixture = Fixture::new("dify-1.12");
    let far = fixture.tool(RUN).env("ALIYUN_SLS_ENDPOINT", "cn-hangzhou.log.aliyuncs.com");
    far.run().exits(2).tells("they are for a local SLS only");
}
