//! Stops of every kind, and that the next run goes on without losing or doubling a row.

use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

use crate::harness::fixture::Fixture;
use crate::harness::tool::Running;

/// A run that takes a while where SLS answers slowly: small batches, two workers.
const SLOW_RUN: &str = "run --workers 2 --batch-kib 64";

#[test]
fn ten_kills_at_random_moments_lose_and_double_nothing() {
    let seed: u64 =
        std::env::var("SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    eprintln!("SEED={seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(3000, 60);
    fixture.slow_down(20);
    for _ in 0..10 {
        let running = fixture.tool(SLOW_RUN).spawn();
        std::thread::sleep(Duration::from_millis(random.random_range(100..900)));
        running.kill();
    }
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_lost_answer_is_sent_again_and_stored_once() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    fixture
        .sls
        .post("/_sim/faults", &json!({"kind": "put", "nth": 1, "times": 1, "action": "cut_after"}));
    fixture.tool("run").run().exits(0).tells("the same number goes out again").tells("0 differ");
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_request_that_never_arrived_is_sent_again() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    fixture.sls.post(
        "/_sim/faults",
        &json!({"kind": "put", "nth": 1, "times": 2, "action": "cut_before"}),
    );
    fixture.tool("run").run().exits(0).tells("the same number goes out again");
    fixture.holds_every_finished_row_once();
}

#[test]
fn an_sls_that_does_not_answer_leaves_batches_that_can_be_sent_again() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(2000, 30);
    fixture.sls.post(
        "/_sim/faults",
        &json!({"kind": "put", "nth": 9, "times": 1_000_000, "action": "cut_before"}),
    );
    let mut running = fixture.tool("run --batch-kib 64").spawn();
    running.wait_for("the same number goes out again");
    std::thread::sleep(Duration::from_secs(1));
    running.signal("INT");
    running.wait().exits(75).tells("may or may not be in SLS");
    let open = "SELECT count(*), count(DISTINCT lane_id) FROM sls_backfill.batch \
                WHERE state = 'intent'";
    let open = fixture.database.psql(open);
    let (batches, lanes) = open.trim().split_once('|').unwrap();
    assert!(batches != "0" && batches == lanes, "one open number a lane: {open}");
    fixture.sls.forget_faults();
    fixture.tool("run").run().exits(0).tells("0 still in doubt");
    fixture.holds_every_finished_row_once();
}

#[test]
fn an_answer_that_is_not_from_sls_is_not_believed() {
    for action in ["html", "no_request_id"] {
        let fixture = Fixture::new("dify-1.12");
        fixture.fill(100, 10);
        fixture
            .sls
            .post("/_sim/faults", &json!({"kind": "put", "nth": 1, "times": 1, "action": action}));
        fixture.tool("run").run().exits(0).tells("not from SLS");
        fixture.holds_every_finished_row_once();
    }
}

#[test]
fn a_quota_answer_is_waited_for() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    let refuse = json!({"status": 403, "code": "ShardWriteQuotaExceed", "message": "wait"});
    fixture.sls.post(
        "/_sim/faults",
        &json!({"kind": "put", "nth": 1, "times": 3, "action": {"refuse": refuse}}),
    );
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn the_first_signal_finishes_what_is_in_flight() {
    for signal in ["INT", "TERM"] {
        let fixture = Fixture::new("dify-1.12");
        fixture.fill(2000, 30);
        fixture.slow_down(20);
        let mut running = fixture.tool(SLOW_RUN).spawn();
        running.wait_for("order time");
        std::thread::sleep(Duration::from_millis(200));
        running.signal(signal);
        running
            .wait()
            .exits(75)
            .tells("stopping: what is in flight is finished first")
            .tells("hint: run the same command again to continue");
        let open =
            fixture.database.psql("SELECT count(*) FROM sls_backfill.batch WHERE state = 'intent'");
        assert_eq!(open.trim(), "0", "nothing is left in doubt");
        fixture.tool("run").run().exits(0);
        fixture.holds_every_finished_row_once();
    }
}

#[test]
fn a_second_run_is_refused_and_one_that_joins_shares_the_work() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(2000, 30);
    fixture.slow_down(20);
    let mut first = fixture.tool(SLOW_RUN).spawn();
    first.wait_for("order time");
    fixture
        .tool("run")
        .run()
        .exits(6)
        .tells("another run is at work: pid ")
        .tells("hint: wait for it, or share its work with --join");
    let second = fixture.tool(&format!("{SLOW_RUN} --join")).spawn();
    second.wait().exits(0);
    first.wait().exits(0);
    fixture.holds_every_finished_row_once();
    fixture.tool("run").run().exits(0).tells("nothing new to do");
}

#[test]
fn who_joins_with_other_settings_takes_no_pass_away() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 30);
    // Two tables with two shards each are read from their ends; then the first batch looks for the
    // end of its shard, before the pass has a row.
    fixture.sls.order(&json!({"kind": "cursor", "nth": 5, "action": "hold"}));
    let first = fixture.tool("run --workers 1").spawn();
    fixture.sls.wait_until("held", 1);
    for other in ["--since=2020-01-01", "--tenant=00000000-0000-4000-8000-000000000000"] {
        fixture
            .tool("run --join")
            .arg(other)
            .run()
            .exits(3)
            .tells("the open pass of workflow_runs was begun with other settings")
            .tells("hint: join with the settings of the run that is at work");
    }
    fixture.sls.release();
    first.wait().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_process_stopped_past_its_lease_writes_nothing_when_it_wakes() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(2000, 30);
    fixture.slow_down(20);
    let mut first = fixture.tool(SLOW_RUN).spawn();
    first.wait_for("order time");
    std::thread::sleep(Duration::from_millis(300));
    stop_between_transactions(&first, &fixture);
    // As if a minute had gone by; its intents and ranges fall to the next run.
    fixture.database.psql(
        "UPDATE sls_backfill.process SET lease_until = now() - interval '1 second'; \
         UPDATE sls_backfill.range SET lease_until = now() - interval '1 second' \
         WHERE owner IS NOT NULL",
    );
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
    first.signal("CONT");
    let woken = Instant::now();
    first.wait().exits(70).tells("the ledger took this process for dead; others go on");
    assert!(woken.elapsed() < Duration::from_secs(8), "it went on for {:?}", woken.elapsed());
    fixture.holds_every_finished_row_once();
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

/// Stops the process where Postgres does not end a session of it meanwhile.
fn stop_between_transactions(running: &Running, fixture: &Fixture) {
    for _ in 0..100 {
        running.signal("STOP");
        // What it has asked before it was stopped is answered by then.
        std::thread::sleep(Duration::from_millis(50));
        let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                    AND state LIKE 'idle in transaction%'";
        if fixture.database.psql(open).trim() == "0" {
            return;
        }
        running.signal("CONT");
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("it was never outside of a transaction");
}

#[test]
fn a_process_stopped_in_a_transaction_loses_it_and_can_be_run_again() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 30);
    fixture.tool("run --max-rows 1").run();
    fixture.database.psql(
        "CREATE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END'; \
         CREATE TRIGGER wait_here BEFORE UPDATE ON sls_backfill.range \
         FOR EACH ROW EXECUTE FUNCTION wait_here()",
    );
    let lock = fixture.database.hold_lock(7);
    let running = fixture.tool("run --workers 1").spawn();
    fixture.database.wait_for_a_waiting_lock();
    running.signal("STOP");
    drop(lock);
    // The stop may have caught another transaction as well.
    let open = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() \
                AND state LIKE 'idle in transaction%'";
    fixture.database.wait_until(open, "t");
    fixture.database.wait_until(open, "f");
    running.signal("CONT");
    running.wait().exits(75).tells("when Postgres is back, run the same command again");
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn rows_that_come_late_are_taken_by_the_next_run() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    fixture.tool("run").run().exits(0);
    // A transaction that began before the run and commits after it.
    fixture.database.psql(
        "INSERT INTO workflow_node_executions SELECT (jsonb_populate_record(n, \
         jsonb_build_object('id', gen_random_uuid()))).* FROM workflow_node_executions n \
         WHERE created_at > (now() AT TIME ZONE 'UTC') - interval '20 hours' \
         AND status = 'succeeded'",
    );
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}
