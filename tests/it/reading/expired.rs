//! Rows that are older than their logstore keeps logs: they are counted, cost nothing more, and go
//! when they may.

use serde_json::json;

use crate::harness::fixture::Fixture;
use crate::harness::{DEADLINE, poll};
use crate::reading::{NODES, RUNS, ago, id, insert_old, set_ttl, with_held_put, with_ttl};

/// So many rows of both tables that finished 600 days ago, and one that finished yesterday.
fn insert_expired(fixture: &Fixture, rows: u32) {
    insert_old(fixture, RUNS, 1, "1 day");
    insert_old(fixture, NODES, 1, "1 day");
    for table in [RUNS, NODES] {
        fixture.database.psql(&format!(
            "INSERT INTO {table} SELECT (jsonb_populate_record(r, jsonb_build_object( \
             'id', gen_random_uuid(), 'created_at', r.created_at - interval '600 days' \
             + i * interval '1 second', 'finished_at', r.finished_at - interval '600 days' \
             + i * interval '1 second'))).* FROM {table} r, generate_series(1, {rows}) i"
        ));
    }
    fixture.database.psql(&format!("ANALYZE {RUNS}, {NODES}"));
}

/// How many rows of the tables statements have touched, in the source and in the ledger.
fn rows_touched(fixture: &Fixture) -> u64 {
    // What a session has counted is there at the latest when it has ended.
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                  AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
    fixture.database.wait_until(others, "0");
    let sql = "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) \
               + n_tup_ins + n_tup_upd) FROM pg_stat_user_tables \
               WHERE relname IN ('workflow_runs', 'hold')";
    let mut last = String::new();
    // Nobody tells when the figures of a session that has just ended are added up.
    poll("figures that stay", DEADLINE, || {
        std::thread::sleep(std::time::Duration::from_millis(600));
        let now = fixture.database.psql(sql);
        let stay = now == last;
        last = now;
        stay.then_some(())
    });
    last.trim().parse().unwrap()
}

#[test]
fn rows_older_than_the_ttl_cost_no_hold_and_no_work_the_next_night() {
    let fixture = with_ttl(30);
    insert_expired(&fixture, 5000);
    fixture
        .tool("run --tables workflow_runs")
        .run()
        .exits(0)
        .prints("5,001 rows seen = 1 in SLS + 5,000 held")
        .prints("held, expired: 5,000");
    let holds = "SELECT count(*) FROM sls_backfill.hold";
    assert_eq!(fixture.database.psql(holds).trim(), "0");
    insert_old(&fixture, RUNS, 2, "1 day");
    let before = rows_touched(&fixture);
    fixture
        .tool("run --tables workflow_runs")
        .run()
        .exits(0)
        .prints("held, expired: 5,000")
        .tells("1 rows sent");
    let touched = rows_touched(&fixture) - before;
    assert!(touched < 500, "{touched} rows were touched again");
}

#[test]
fn expired_rows_go_when_the_ttl_is_raised_and_those_still_too_old_stay_counted() {
    let fixture = with_ttl(30);
    insert_expired(&fixture, 50);
    for (n, age) in [(2, "40 days"), (3, "50 days"), (4, "70 days")] {
        insert_old(&fixture, RUNS, n, age);
        insert_old(&fixture, NODES, n, age);
    }
    // A row that was held for another reason, and is too old when it passes.
    fixture.insert(
        RUNS,
        json!({"id": id(5), "status": "running", "created_at": ago(&fixture, "45 days"),
               "finished_at": null}),
    );
    fixture.tool("run --range-rows 20").run().exits(0).prints("held, expired: 53");
    let finished_at = ago(&fixture, "44 days");
    fixture.database.psql(&format!(
        "UPDATE {RUNS} SET status = 'succeeded', finished_at = '{finished_at}' \
         WHERE id = '{}'",
        id(5)
    ));
    fixture.tool("run").run().exits(0).prints("held, expired: 54").prints("expired: 53");
    set_ttl(&fixture, 60);
    fixture
        .tool("run")
        .run()
        .exits(0)
        .tells("rows that were older than their logstore kept logs")
        .prints("1 rows seen + 54 held before = 3 in SLS + 51 held + 1 already + 0 gone")
        .prints("held, expired: 51");
    let all = "workflow_runs: 55 rows seen = 4 in SLS + 51 held + 0 gone";
    fixture.tool("status").run().exits(0).prints(all);
    let expected: Vec<_> = [1, 2, 3, 5].map(id).into();
    assert_eq!(fixture.stored("workflow_execution"), expected);
    assert_eq!(fixture.stored("workflow_node_execution"), [1, 2, 3].map(id));
    // Once is enough.
    let again = fixture.tool("run").run().exits(0);
    assert!(!again.stderr.contains("kept logs"), "{again}");
    fixture.tool("run --beyond-ttl").run().exits(0).prints("0 held");
    fixture.tool("run").run().exits(0).prints("0 held");
    fixture.holds_every_finished_row_once();
}

#[test]
fn expired_rows_go_with_the_time_of_sending() {
    let fixture = with_ttl(30);
    insert_expired(&fixture, 50);
    fixture.tool("run").run().exits(0).prints("held, expired: 50");
    fixture.tool("run --log-time ingest").run().exits(0).prints("0 held");
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_kill_while_expired_rows_are_read_again_loses_and_doubles_nothing() {
    let fixture = with_ttl(30);
    insert_expired(&fixture, 300);
    fixture.tool("run --range-rows 100").run().exits(0);
    set_ttl(&fixture, 3650);
    // The first put of this run is one of rows that are read again.
    let running = with_held_put(&fixture, "run --batch-kib 64 --workers 2", 2);
    running.kill();
    fixture.sls.release();
    insert_old(&fixture, RUNS, 2, "1 day");
    insert_old(&fixture, NODES, 2, "1 day");
    fixture.tool("run --signature-life-s 3 --late-s 1 --visible-s 1").run().exits(0);
    fixture.holds_every_finished_row_once();
}
