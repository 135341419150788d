//! A ledger that goes back in time under a run that hears nothing of it: its Postgres fails over, or
//! crashes, behind a PgBouncer. Counted by id in the simulator, nothing is there twice.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::harness::bouncer::Bouncer;
use crate::harness::cluster::Cluster;
use crate::harness::database::Database;
use crate::harness::fixture::Fixture;
use crate::harness::poll;

/// Its process looks once a minute whether others are at work: whatever is found here is found by
/// the statements themselves.
const RUN: &str = "run --batch-kib 64 --workers 2 --range-rows 50 --visible-s 1";
const AUDIT: &str = "audit --signature-life-s 2 --late-s 1 --visible-s 1";

/// Batches that are known to be stored.
const STORED: &str = "SELECT count(*) FROM sls_backfill.batch WHERE state IN ('stored', 'proved')";

/// Waits until `number` batches are known to be stored.
#[track_caller]
fn wait_for_batches(fixture: &Fixture, number: usize) {
    poll(&format!("{number} batches"), Duration::from_secs(30), || {
        let stored = fixture.database.try_psql(STORED).ok()?.trim().parse::<usize>().ok()?;
        (stored >= number).then_some(())
    });
}

#[test]
fn a_replica_promoted_behind_a_pgbouncer_in_mid_run_stops_it_and_doubles_nothing() {
    let primary = Arc::new(Cluster::start(&[]));
    let fixture = Fixture::of(Database::fresh_in(&primary).shape("dify-1.12"));
    fixture.fill(1500, 20);
    let bouncer = Bouncer::start(&primary, 10);
    let replica = primary.start_replica();
    let psql = |sql: &str| fixture.database.psql_on(&replica, sql);
    let behind = |arguments: &str| fixture.tool(arguments).env("DB_PORT", bouncer.port.to_string());
    fixture.slow_down(50);
    let running = behind(RUN).spawn();
    wait_for_batches(&fixture, 8);
    // From here on the replica hears of nothing.
    psql("ALTER SYSTEM SET primary_conninfo = ''");
    psql("SELECT pg_reload_conf()");
    poll("the replica to stand alone", Duration::from_secs(30), || {
        (psql("SELECT count(*) FROM pg_stat_wal_receiver") == "0").then_some(())
    });
    let kept: usize = psql(STORED).parse().unwrap();
    wait_for_batches(&fixture, kept + 12);
    psql("SELECT pg_promote()");
    bouncer.lead_to(&replica);
    running.wait().exits(3).tells("its Postgres is on another timeline").tells("hint: ");
    assert!(psql(STORED).parse::<usize>().unwrap() < kept + 12, "the replica lacks what came last");
    fixture.sls.forget_faults();
    behind(RUN).run().exits(3).tells("its Postgres is on another timeline");
    behind(AUDIT).run().exits(0);
    behind(RUN).run().exits(0);
    behind("status").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_step_is_not_recorded_on_a_promoted_replica_even_if_it_lacks_nothing() {
    let primary = Arc::new(Cluster::start(&[]));
    let fixture = Fixture::of(Database::fresh_in(&primary).shape("dify-1.12"));
    fixture.fill(40, 20);
    let bouncer = Bouncer::start(&primary, 10);
    let replica = primary.start_replica();
    let psql = |sql: &str| fixture.database.psql_on(&replica, sql);
    // A table with two shards is read from their ends; then the first batch looks for the end of its
    // shard, before it is recorded.
    fixture.sls.order(&json!({"kind": "cursor", "nth": 3, "action": "hold"}));
    let run = format!("{RUN} --tables workflow_runs");
    let running = fixture.tool(&run).env("DB_PORT", bouncer.port.to_string()).spawn();
    fixture.sls.wait_until("held", 1);
    poll("the range on the replica", Duration::from_secs(30), || {
        (psql("SELECT count(*) > 0 FROM sls_backfill.range WHERE owner IS NOT NULL") == "t")
            .then_some(())
    });
    psql("SELECT pg_promote()");
    bouncer.lead_to(&replica);
    fixture.sls.release();
    running.wait().exits(3).tells("its Postgres is on another timeline");
    assert_eq!(psql("SELECT count(*) FROM sls_backfill.batch"), "0");
    assert!(fixture.stored("workflow_execution").is_empty());
}

#[test]
fn a_process_whose_own_range_went_back_ends() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(400, 20);
    fixture.slow_down(100);
    let run = RUN.replace("--workers 2", "--workers 1").replace("rows 50", "rows 5000");
    let running = fixture.tool(&run).deadline(Duration::from_secs(25)).spawn();
    wait_for_batches(&fixture, 3);
    // No timeline tells of it: as after the snapshot of a disk.
    fixture.database.psql("UPDATE sls_backfill.range SET position = after WHERE owner IS NOT NULL");
    running.wait().exits(3).tells("went back in time").tells("hint: ");
    fixture.sls.forget_faults();
    fixture.tool(AUDIT).run().exits(0);
    fixture.tool(RUN).run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_batch_that_the_ledger_lacks_stops_it_with_the_page_that_shows_the_batch() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(1000, 20);
    // Read long enough after it was acknowledged for the ledger to lose it meanwhile.
    fixture.sls.switch(&json!({"receive_lag_ms": 2000}));
    fixture.slow_down(200);
    let run = RUN.replace("--workers 2", "--workers 1");
    let running = fixture.tool(&run).spawn();
    wait_for_batches(&fixture, 4);
    let lost = "WITH lost AS (DELETE FROM sls_backfill.batch WHERE id = (SELECT id \
                FROM sls_backfill.batch WHERE state = 'stored' ORDER BY id DESC LIMIT 1) \
                RETURNING id, range_id, rows), \
                its_rows AS (DELETE FROM sls_backfill.batch_rows r USING lost \
                WHERE r.batch_id = lost.id) \
                UPDATE sls_backfill.range r SET rows_seen = rows_seen - lost.rows FROM lost \
                WHERE r.id = lost.range_id RETURNING lost.id";
    let lost = fixture.database.psql(lost);
    running.wait().exits(3).tells(&format!("SLS holds batch {lost} of this ledger"));
    let sent = fixture.stored("workflow_execution").len();
    assert!(sent < fixture.finished("workflow_runs").len(), "it went on to its end");
    fixture.tool(RUN).run().exits(3).tells(&lost);
    fixture.sls.forget_faults();
    fixture.sls.switch(&json!({"receive_lag_ms": null}));
    fixture.tool(AUDIT).run().exits(0);
    fixture.tool(RUN).run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn what_a_crash_of_postgres_took_from_the_reading_is_not_taken_for_absent() {
    // It writes what may be lost every ten seconds only.
    let cluster = Arc::new(Cluster::start(&[("wal_writer_delay", "10s")]));
    let fixture = Fixture::of(Database::fresh_in(&cluster).shape("dify-1.12"));
    fixture.set_proven(false);
    fixture.fill(40, 1);
    let bouncer = Bouncer::start(&cluster, 5);
    let behind = |arguments: &str| fixture.tool(arguments).env("DB_PORT", bouncer.port.to_string());
    // Nothing is read: whoever resolves is the first to do it.
    let run = "run --tables workflow_runs --verify none --workers 1 --visible-s 1";
    behind(run).run().exits(0);
    // As if its answer had been lost, and its signature were over.
    let intent = "UPDATE sls_backfill.batch SET state = 'intent', stored_at = NULL, \
                  signed_at = signed_at - interval '20 minutes' RETURNING id";
    let batch_id = fixture.database.psql(intent);
    // The first two pulls look whether the positions are good. The batch's own comes when nobody
    // else writes any more; that of the other shard waits.
    fixture.sls.order(&json!({"kind": "pull", "nth": 3, "action": {"delay_ms": 2500}}));
    fixture.sls.order(&json!({"kind": "pull", "nth": 5, "action": "hold"}));
    let running = behind(run).spawn();
    fixture.sls.wait_until("held", 1);
    let seen = format!("SELECT rows FROM sls_backfill.sighting WHERE batch_id = '{batch_id}'");
    assert_eq!(fixture.database.psql(&seen), "40", "it is read before the other shard");
    cluster.crash();
    fixture.sls.release();
    running.wait().exits(0).tells("1 found in SLS, 0 sent again");
    assert_eq!(fixture.stored("workflow_execution"), fixture.finished("workflow_runs"));
}

#[test]
fn a_ledger_whose_server_does_not_wait_for_its_standbys_is_told() {
    let primary = Arc::new(Cluster::start(&[]));
    let fixture = Fixture::of(Database::fresh_in(&primary).shape("dify-1.12"));
    fixture.fill(20, 1);
    let alone = fixture.tool("run").run().exits(0);
    assert!(!alone.stderr.contains("standby"), "{alone}");
    fixture.tool("doctor").run().exits(0).prints("ok    standbys");
    let replica = primary.start_replica();
    let told = "does not wait for its standbys (synchronous_standby_names is empty; connected: 1)";
    fixture.tool("run").run().exits(0).tells(told).tells("hint: ");
    fixture.tool("doctor").run().exits(0).prints(told).prints("warn  standbys");
    fixture.database.psql("ALTER SYSTEM SET synchronous_standby_names = '*'");
    fixture.database.psql("SELECT pg_reload_conf()");
    fixture.database.wait_until("SHOW synchronous_standby_names", "*");
    let waits = fixture.tool("run").run().exits(0);
    assert!(!waits.stderr.contains("standby"), "{waits}");
    // Else nothing ends any more once the replica is gone.
    fixture.database.psql("ALTER SYSTEM RESET synchronous_standby_names");
    fixture.database.psql("SELECT pg_reload_conf()");
    fixture.database.wait_until("SHOW synchronous_standby_names", "");
    drop(replica);
}
