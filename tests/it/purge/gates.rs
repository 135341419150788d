//! What a purge waits for, and that it goes on afterwards: each gate is shut in a real Postgres.

use std::sync::Arc;

use serde_json::json;

use crate::harness::cluster::Cluster;
use crate::harness::database::Database;
use crate::harness::fixture::Fixture;
use crate::harness::tool::Tool;
use crate::harness::{DEADLINE, poll};
use crate::purge::{count, purge};

/// Migrated runs in a cluster of their own: what others do in it would shut gates, too.
fn alone() -> (Fixture, Arc<Cluster>) {
    // Segments of WAL that are nothing but skipped should cost nothing.
    let cluster = Arc::new(Cluster::start(&[("wal_init_zero", "off")]));
    let fixture = Fixture::of(Database::fresh_in(&cluster).shape("dify-1.12"));
    fixture.fill(60, 5);
    fixture.tool("run").run().exits(0);
    (fixture, cluster)
}

/// Waits with that reason, deletes nothing while it waits, and everything when `open` has opened
/// the gate.
#[track_caller]
fn waits(fixture: &Fixture, purge: Tool, reason: &str, open: impl FnOnce()) {
    let rows = count(&fixture.database, "workflow_runs");
    let mut running = purge.spawn();
    running.wait_for(reason);
    assert_eq!(count(&fixture.database, "workflow_runs"), rows);
    open();
    running.wait().exits(0);
    assert_eq!(count(&fixture.database, "workflow_runs"), 1, "one has not finished");
}

fn runs(fixture: &Fixture, more: &str) -> Tool {
    purge(fixture, &format!(" --tables workflow_runs{more}"))
}

#[test]
fn wal_that_a_slot_keeps_is_waited_for() {
    let (fixture, _cluster) = alone();
    fixture.database.psql("SELECT pg_create_physical_replication_slot('slow', true)");
    for _ in 0..65 {
        fixture.database.psql("SELECT pg_logical_emit_message(false, 'test', 'x')");
        fixture.database.psql("SELECT pg_switch_wal()");
    }
    waits(
        &fixture,
        runs(&fixture, " --slot-wal-max-gib 1"),
        "a replication slot keeps over 1 GiB of WAL (--slot-wal-max-gib)",
        || drop(fixture.database.psql("SELECT pg_drop_replication_slot('slow')")),
    );
}

#[test]
fn a_replica_that_is_behind_is_waited_for() {
    let (fixture, cluster) = alone();
    let replica = cluster.start_replica();
    replica.sessions.run("SELECT pg_wal_replay_pause()").unwrap();
    let behind = "SELECT coalesce(max(replay_lag) > interval '1 second', false) \
                  FROM pg_stat_replication";
    poll("the replica to be behind", DEADLINE, || {
        fixture
            .database
            .psql("CREATE TABLE IF NOT EXISTS busy (n int); INSERT INTO busy VALUES (1)");
        (fixture.database.psql(behind) == "t").then_some(())
    });
    waits(
        &fixture,
        runs(&fixture, " --replica-lag-max-s 1"),
        "a replica of Postgres is over 1 s behind (--replica-lag-max-s)",
        || drop(replica.sessions.run("SELECT pg_wal_replay_resume()").unwrap()),
    );
}

#[test]
fn whoever_waits_for_a_lock_on_the_table_goes_first() {
    let (fixture, _cluster) = alone();
    let id = fixture.finished("workflow_runs")[0].clone();
    let held = fixture.database.hold_row("workflow_runs", &id);
    // It has looked at the table's shape by then, which waits behind such a lock itself.
    fixture.sls.order(&json!({"kind": "pull", "nth": 1, "times": 1, "action": "hold"}));
    let mut running = runs(&fixture, "").spawn();
    fixture.sls.wait_until("held", 1);
    std::thread::scope(|scope| {
        let exclusive = "BEGIN; LOCK TABLE workflow_runs IN ACCESS EXCLUSIVE MODE; COMMIT";
        let waiter = scope.spawn(|| fixture.database.psql(exclusive));
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = \
                       'workflow_runs'::regclass";
        fixture.database.wait_until(waiting, "1");
        fixture.sls.release();
        running.wait_for("1 sessions wait for a lock on the table");
        drop(held);
        waiter.join().unwrap();
    });
    running.wait().exits(0);
    assert_eq!(count(&fixture.database, "workflow_runs"), 1);
}

#[test]
fn a_vacuum_of_the_table_is_waited_for() {
    let (fixture, _cluster) = alone();
    // Whoever has read half of a page keeps a VACUUM that must freeze it away from it.
    let half_read = "BEGIN; DECLARE c CURSOR FOR SELECT id FROM workflow_runs; FETCH 1 FROM c";
    let reader = fixture.database.hold(half_read);
    std::thread::scope(|scope| {
        let vacuum = scope.spawn(|| {
            fixture.database.psql("VACUUM (FREEZE, DISABLE_PAGE_SKIPPING) workflow_runs")
        });
        fixture.database.wait_until("SELECT count(*) FROM pg_stat_progress_vacuum", "1");
        waits(&fixture, runs(&fixture, ""), "a VACUUM is at work on the table", || drop(reader));
        vacuum.join().unwrap();
    });
}

#[test]
fn busy_sessions_are_waited_for() {
    let (fixture, _cluster) = alone();
    std::thread::scope(|scope| {
        let lock = fixture.database.hold_lock(7);
        let busy = scope.spawn(|| fixture.database.psql("SELECT pg_advisory_lock(7)"));
        fixture.database.wait_for_a_waiting_lock();
        waits(
            &fixture,
            runs(&fixture, " --active-sessions-max 0"),
            "sessions are at work (--active-sessions-max)",
            || {
                drop(lock);
                busy.join().unwrap();
            },
        );
    });
}
