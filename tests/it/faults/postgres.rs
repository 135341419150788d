//! The rows of the table that are about Postgres and about processes.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::faults::Numbers::{Proven, Unproven};
use crate::faults::{Case, Numbers, SHORT, ends_well, fault};
use crate::harness::at_once;
use crate::harness::cluster::Cluster;
use crate::harness::database::Database;
use crate::harness::fixture::Fixture;
use crate::harness::tool::Running;

/// Kills the tool's connections to Postgres.
const TERMINATE: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
    WHERE datname = current_database() AND pid <> pg_backend_pid()";

#[test]
fn a_terminated_postgres_connection_at_any_moment_doubles_nothing() {
    for (kind, action) in [("put", "hold_before"), ("put", "hold_after"), ("pull", "hold_before")] {
        let order = fault(kind, 3, 1, json!({action: {"then_cut": false}}));
        let case = Case { faults: vec![order], ..Case::of(Proven) };
        let fixture = case.fixture();
        let running = fixture.tool(&format!("{SHORT} --workers 2")).spawn();
        fixture.sls.wait_until("held", 1);
        fixture.database.psql(TERMINATE);
        fixture.sls.release();
        running.wait();
        ends_well(&fixture);
    }
}

#[test]
fn connections_terminated_again_and_again_double_nothing() {
    let case = Case::of(Unproven);
    let fixture = case.fixture();
    fixture.slow_down(20);
    for _ in 0..6 {
        let running = fixture.tool(&format!("{SHORT} --workers 2")).spawn();
        std::thread::sleep(Duration::from_millis(700));
        fixture.database.psql(TERMINATE);
        running.kill();
    }
    ends_well(&fixture);
}

/// A trigger function on the batches of the ledger, for tests only.
fn trigger(body: &str) -> String {
    format!(
        "CREATE FUNCTION sls_backfill.test_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         {body} RETURN NULL; END $$; CREATE CONSTRAINT TRIGGER test_trigger AFTER INSERT ON \
         sls_backfill.batch DEFERRABLE INITIALLY DEFERRED FOR EACH ROW \
         EXECUTE FUNCTION sls_backfill.test_trigger()"
    )
}

/// The third intent's COMMIT waits for a lock that a test holds.
const THIRD_HANGS: &str = "IF (SELECT count(*) FROM sls_backfill.batch) = 3 THEN \
    PERFORM pg_advisory_xact_lock(4711); END IF;";

const NO_TRIGGER: &str = "DROP TRIGGER IF EXISTS test_trigger ON sls_backfill.batch; \
     DROP FUNCTION IF EXISTS sls_backfill.test_trigger";

#[test]
fn a_full_disk_under_the_ledger_stops_sending_and_loses_nothing() {
    let fixture = Case::of(Proven).fixture();
    fixture.database.psql(&trigger(
        "IF (SELECT count(*) FROM sls_backfill.batch) > 3 THEN \
         RAISE EXCEPTION 'could not extend file: No space left on device' \
         USING ERRCODE = 'disk_full'; END IF;",
    ));
    fixture.tool(SHORT).run().exits(70).tells("No space left on device").tells("hint: ");
    let intents = "SELECT count(*) FROM sls_backfill.batch";
    let sent = fixture.sls.stats()["put_ok"].as_u64().unwrap();
    let known: u64 = fixture.database.psql(intents).trim().parse().unwrap();
    assert!(sent <= known, "{sent} requests were stored, the ledger knows {known}");
    fixture.database.psql(NO_TRIGGER);
    ends_well(&fixture);
}

#[test]
fn a_process_killed_while_its_commit_hangs_sends_nothing_that_the_ledger_lacks() {
    at_once([Proven, Unproven], |numbers| {
        let fixture = Case::of(numbers).fixture();
        fixture.database.psql(&trigger(THIRD_HANGS));
        let lock = fixture.database.hold_lock(4711);
        let running = fixture.tool(&format!("{SHORT} --workers 1")).spawn();
        fixture.database.wait_for_a_waiting_lock();
        running.kill();
        drop(lock);
        fixture.database.psql(NO_TRIGGER);
        ends_well(&fixture);
    });
}

#[test]
fn a_commit_whose_answer_is_lost_is_looked_up() {
    let fixture = Case::of(Proven).fixture();
    // Its connection ends while it waits, so Postgres takes it back.
    fixture.database.psql(&trigger(THIRD_HANGS));
    let lock = fixture.database.hold_lock(4711);
    let running = fixture.tool(&format!("{SHORT} --workers 1")).spawn();
    fixture.database.wait_for_a_waiting_lock();
    fixture.database.psql(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' \
         AND NOT granted AND objid = 4711",
    );
    drop(lock);
    running.wait().exits(0);
    ends_well(&fixture);
}

/// The sessions whose COMMIT of an intent waits; nothing else writes that table, and others who
/// wait, a heartbeat for instance, are no part of the test.
const INTENT_WAITS: &str = "FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND pid IN \
    (SELECT pid FROM pg_locks WHERE relation = 'sls_backfill.batch_rows'::regclass \
     AND mode = 'RowExclusiveLock')";

/// A cluster of its own, whose commits a test can keep from being answered.
struct Unanswered {
    fixture: Fixture,
}

impl Unanswered {
    fn new(numbers: Numbers) -> Self {
        let database = Database::fresh_in(&Arc::new(Cluster::start(&[]))).shape("dify-1.12");
        Self { fixture: Case::of(numbers).world_of(Fixture::of(database)) }
    }

    /// From now on a commit is on disk, and then waits for a replica that there is not.
    fn begin(&self) {
        let database = &self.fixture.database;
        database.psql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
        database.psql("SELECT pg_reload_conf()");
        database.wait_until("SHOW synchronous_standby_names", "nobody");
    }

    /// A run whose next commit is on disk, and waits.
    fn run(&self) -> Running {
        let Self { fixture } = self;
        fixture.sls.order(&fault("put", 3, 1, json!({"hold_before": {}})));
        let running = fixture.tool(&format!("{SHORT} --workers 1")).spawn();
        fixture.sls.wait_until("held", 1);
        self.begin();
        fixture.sls.release();
        fixture.database.wait_until(&format!("SELECT count(*) > 0 {INTENT_WAITS}"), "t");
        running
    }

    /// Closes the connection of the intent that waits: it never hears that its commit came through.
    fn end(&self) {
        let database = &self.fixture.database;
        database.psql(&format!("SELECT pg_terminate_backend(pid) {INTENT_WAITS}"));
        database.psql("ALTER SYSTEM RESET synchronous_standby_names");
        database.psql("SELECT pg_reload_conf()");
    }
}

#[test]
fn a_commit_that_came_through_without_an_answer_is_looked_up() {
    let unanswered = Unanswered::new(Proven);
    let running = unanswered.run();
    unanswered.end();
    running.wait().exits(0);
    unanswered.fixture.holds_every_finished_row_once();
    ends_well(&unanswered.fixture);
}

#[test]
fn a_process_killed_before_it_hears_of_its_commit_doubles_nothing() {
    at_once([Proven, Unproven], |numbers| {
        let unanswered = Unanswered::new(numbers);
        unanswered.run().kill();
        unanswered.end();
        ends_well(&unanswered.fixture);
    });
}

#[test]
fn a_process_taken_for_dead_while_it_works_writes_nothing_more() {
    at_once([Proven, Unproven], |numbers| {
        let fixture = Case::of(numbers).fixture();
        fixture.slow_down(100);
        let first = fixture.tool(&format!("{SHORT} --workers 2")).spawn();
        let batches = "SELECT count(*) > 1 FROM sls_backfill.batch";
        fixture.database.wait_until(batches, "t");
        // As if it had not been heard of for a minute.
        fixture.database.psql(
            "UPDATE sls_backfill.process SET lease_until = now() - interval '1 second'; \
             UPDATE sls_backfill.range SET lease_until = now() - interval '1 second' \
             WHERE owner IS NOT NULL",
        );
        let second = fixture.tool(SHORT).spawn();
        first.wait();
        second.wait().exits(0);
        let later = "SELECT count(*) FROM sls_backfill.batch b \
            JOIN sls_backfill.lane l ON l.id = b.lane_id \
            JOIN sls_backfill.process p ON p.id = l.process_id WHERE b.intended_at > p.ended_at";
        assert_eq!(fixture.database.psql(later), "0");
        fixture.holds_every_finished_row_once();
        ends_well(&fixture);
    });
}

#[test]
fn who_dies_is_taken_over_by_who_shares_its_pass() {
    let order = fault("put", 3, 1, json!({"hold_before": {"then_cut": true}}));
    let fixture = Case { faults: vec![order], ..Case::of(Proven) }.fixture();
    let first = fixture.tool(&format!("{SHORT} --workers 1")).spawn();
    fixture.sls.wait_until("held", 1);
    let second = fixture.tool(&format!("{SHORT} --workers 1 --join")).spawn();
    fixture.database.wait_until("SELECT count(*) FROM sls_backfill.process WHERE joined", "1");
    first.kill();
    fixture.sls.release();
    // No other run: its range and its open batch are the second's.
    second.wait().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_process_stopped_past_its_lease_in_the_middle_of_a_request_doubles_nothing() {
    at_once([Proven, Unproven], |numbers| {
        let order = fault("put", 3, 1, json!({"hold_before": {}}));
        let fixture = Case { faults: vec![order], ..Case::of(numbers) }.fixture();
        let first = fixture.tool(&format!("{SHORT} --workers 1")).spawn();
        fixture.sls.wait_until("held", 1);
        first.signal("STOP");
        fixture.sls.forget_faults();
        // As if a minute had gone by; its intents and ranges fall to the next run.
        fixture.database.psql(
            "UPDATE sls_backfill.process SET lease_until = now() - interval '1 second'; \
             UPDATE sls_backfill.range SET lease_until = now() - interval '1 second' \
             WHERE owner IS NOT NULL",
        );
        fixture.tool(SHORT).run().exits(0);
        fixture.holds_every_finished_row_once();
        // What it had on the wire arrives now, its signature long over, and it wakes up.
        fixture.sls.release();
        first.signal("CONT");
        first.wait();
        fixture.holds_every_finished_row_once();
        ends_well(&fixture);
    });
}

#[test]
fn two_hosts_that_start_together_share_nothing_unasked() {
    let fixture = Case::of(Proven).fixture();
    fixture.slow_down(20);
    let both = [(); 2].map(|()| fixture.tool(SHORT).spawn());
    let mut codes: Vec<_> =
        both.into_iter().map(|running| running.wait().status.code().expect("no signal")).collect();
    codes.sort_unstable();
    assert_eq!(codes, [0, 6]);
    fixture.holds_every_finished_row_once();
}
