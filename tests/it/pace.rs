//! Rates and quotas: how fast a run may go, and that it shows why it waits.

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use crate::harness::cluster::Cluster;
use crate::harness::database::Database;
use crate::harness::fixture::Fixture;
use crate::harness::session::Sessions;
use crate::harness::simulator::Simulator;
use crate::harness::{DEADLINE, poll};

#[test]
fn a_rate_is_kept_and_shown_as_the_reason_to_wait() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    let mut before = fixture.sls.stats();
    // One second's worth, or one batch, may go at once.
    for (table, flag, counter, per_s, burst) in [
        ("workflow_runs", "--rows-per-s 80", "logs", 80.0, 80.0),
        ("workflow_node_executions", "--bytes-per-s 128KiB", "raw_bytes", 131_072.0, 65_536.0),
    ] {
        let begun = Instant::now();
        fixture
            .tool(&format!("run --tables {table} --batch-kib 64 {flag}"))
            .run()
            .exits(0)
            .tells(&format!("{table}: waiting: {}", flag.split(' ').next().unwrap()));
        let took_s = begun.elapsed().as_secs_f64();
        let after = fixture.sls.stats();
        let sent = after[counter].as_f64().unwrap() - before[counter].as_f64().unwrap();
        let at_least_s = (sent - burst) / per_s;
        assert!(at_least_s > 1.0, "{sent} {counter} are too few for this test");
        assert!(took_s > at_least_s, "{sent} {counter} in {took_s} s, not in {at_least_s} s");
        before = after;
    }
    fixture.holds_every_finished_row_once();
}

#[test]
fn requests_are_counted_with_their_repetitions() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    fixture.sls.order(&json!({"kind": "put", "nth": 2, "times": 4, "action": "cut_before"}));
    let begun = Instant::now();
    fixture
        .tool("run --batch-kib 64 --requests-per-s 4")
        .run()
        .exits(0)
        .tells("waiting: --requests-per-s");
    let took_s = begun.elapsed().as_secs_f64();
    let requests = fixture.sls.stats()["put_ok"].as_f64().unwrap() + 4.0;
    assert!(took_s > (requests - 4.0) / 4.0, "{requests} requests in {took_s} s");
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_refused_batch_waits_for_its_shard_and_is_stored_once() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(1000, 10);
    let refuse = json!({"status": 403, "code": "ShardWriteQuotaExceed", "message": "wait"});
    fixture.sls.order(&json!({"kind": "put", "nth": 3, "times": 2, "action": {"refuse": refuse}}));
    fixture
        .tool("run --batch-kib 64 --workers 8 -v")
        .run()
        .exits(0)
        .tells("waiting: SLS's shards take no more for now")
        .tells("MiB/s, no more 4.77 MiB/s");
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_small_quota_is_used_and_hardly_a_request_refused() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(8000, 10);
    fixture.sls.switch(&json!({"shard_bytes_per_s": 512 << 10}));
    let begun = Instant::now();
    let before = fixture.sls.stats();
    fixture
        .tool("run --tables workflow_node_executions --batch-kib 64 --verify none -v")
        .run()
        .exits(0)
        .tells("its shards are the limit: 2 take")
        .tells("hint: `dify-sls-backfill run --split-shards 4`");
    let took_s = begun.elapsed().as_secs_f64();
    let after = fixture.sls.stats();
    let grew = |name: &str| after[name].as_f64().unwrap() - before[name].as_f64().unwrap();
    let quota = 2.0 * f64::from(512 << 10) * took_s;
    let used = grew("raw_bytes") / quota;
    // Its beginning and its end count, too, and this machine may be busy.
    assert!(used > 0.5, "{used} of the quota in {took_s} s, {} bytes", grew("raw_bytes"));
    let refused = after["errors"]["ShardWriteQuotaExceed"].as_f64().unwrap_or(0.0);
    let refused = refused / (refused + grew("put_ok"));
    assert!(refused < 0.1, "{refused} of the requests were refused: {after}");
}

#[test]
fn a_run_splits_the_shards_that_it_is_asked_for() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    fixture
        .tool("run --batch-kib 64 --split-shards 5")
        .run()
        .exits(0)
        .tells("workflow_node_execution: 5 shards take writes now");
    let shards = fixture.sls.call("GET", "/logstores/workflow_execution/shards", &[], "");
    let shards: serde_json::Value = serde_json::from_str(&shards).unwrap();
    let writable = shards.as_array().unwrap().iter().filter(|shard| shard["status"] == "readwrite");
    assert_eq!(writable.count(), 5, "{shards}");
    fixture.holds_every_finished_row_once();
}

#[test]
fn reading_waits_for_a_replica_that_is_too_far_behind() {
    let primary = Arc::new(Cluster::start(&[]));
    let database = Database::fresh_in(&primary).shape("dify-1.12");
    let fixture = Fixture { database, sls: Simulator::start() };
    fixture.tool("init").run().exits(0);
    let replica = primary.start_replica();
    fixture.fill(200, 20);
    let ledger = fixture.database.url();
    let sessions = Sessions::new(replica.port, &fixture.database.name);
    let on_replica = |sql: &str| sessions.run(sql).unwrap();
    poll("the replica to have it all", DEADLINE, || {
        (on_replica("SELECT count(*) FROM workflow_runs") == "200").then_some(())
    });
    on_replica("SELECT pg_wal_replay_pause()");
    fixture.database.psql("CREATE TABLE something_new (id int)");
    poll("the replica to be behind", DEADLINE, || {
        let sql = "SELECT pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn() \
                   AND clock_timestamp() - pg_last_xact_replay_timestamp() > interval '2 seconds'";
        (on_replica(sql) == "t").then_some(())
    });
    let mut running = fixture
        .tool("run --no-probe --replica-lag-max-s 1")
        .env("DB_PORT", replica.port.to_string())
        .arg("--ledger-url")
        .arg(&ledger)
        .spawn();
    running.wait_for("waiting: a replica of Postgres is over 1 s behind");
    assert_eq!(fixture.sls.stats()["put_ok"], 0, "nothing was read, so nothing is sent");
    on_replica("SELECT pg_wal_replay_resume()");
    running.wait().exits(0);
    fixture.holds_every_finished_row_once();
}
