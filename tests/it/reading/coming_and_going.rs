//! Rows that come or vanish while they are read.

use serde_json::json;

use crate::harness::fixture::Fixture;
use crate::reading::{NODES, RUNS, id, insert_old, with_held_put};

/// The first range of the runs of `Fixture::fill(200, 20)` has four batches.
const TWO_RANGES: &str = "run --tables workflow_runs --workers 1 --batch-kib 64 \
                          --range-rows 100";

#[test]
fn rows_that_come_behind_the_position_are_read_by_the_same_run() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 20);
    let running = with_held_put(&fixture, TWO_RANGES, 4);
    insert_old(&fixture, RUNS, 1, "15 days");
    fixture.sls.release();
    running
        .wait()
        .exits(0)
        .tells("is read again")
        .prints("201 rows seen = 197 in SLS + 4 held + 0 already + 0 gone");
    assert!(fixture.stored("workflow_execution").contains(&id(1)));
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_range_that_is_read_again_goes_on_where_a_kill_has_stopped_it() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 20);
    let running = with_held_put(&fixture, TWO_RANGES, 4);
    // More than a batch of them.
    for n in 1..=60 {
        insert_old(&fixture, RUNS, n, "15 days");
    }
    // The second range has four batches, and this is the second one of those that came.
    fixture.sls.order(&json!({"kind": "put", "nth": 6, "times": 1, "action": "hold"}));
    fixture.sls.release();
    fixture.sls.wait_until("waiting", 0);
    fixture.sls.wait_until("held", 1);
    let readings = "SELECT readings, position <> after FROM sls_backfill.range ORDER BY id LIMIT 1";
    assert_eq!(fixture.database.psql(readings).trim(), "2|t");
    running.kill();
    fixture.sls.forget_faults();
    fixture.sls.release();
    fixture.tool("run --signature-life-s 3 --late-s 1 --visible-s 1").run().exits(0);
    fixture.tool("status").run().exits(0).prints("260 rows seen = 256 in SLS + 4 held + 0 gone");
    fixture.holds_every_finished_row_once();
}

/// Replaces the table by a view of it that shows run `i` only to whom counts.
fn show_only_when_counted(fixture: &Fixture, i: u32) {
    fixture.database.psql(&format!(
        "ALTER TABLE {RUNS} RENAME TO all_runs; CREATE VIEW {RUNS} AS SELECT * FROM all_runs \
         WHERE id <> md5('run{i}')::uuid OR current_query() LIKE 'SELECT count(*)%'"
    ));
}

#[test]
fn rows_that_only_the_count_finds_are_told_by_every_run_until_they_are_read() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 20);
    show_only_when_counted(&fixture, 149);
    let run = "run --tables workflow_runs --range-rows 60";
    for _ in 0..2 {
        fixture
            .tool(run)
            .run()
            .exits(4)
            .tells("Postgres counts rows that no reading has seen: 1 of workflow_runs")
            .prints("no reading has seen")
            .prints("no pass from the beginning is done yet");
    }
    // Another window has nothing to do with it, and does not make it forgotten.
    fixture.tool(&format!("{run} --since 2020-01-01 --until 2020-02-01")).run().exits(4);
    fixture.tool("status").run().exits(0).prints("no reading has seen");
    fixture.database.psql(&format!("CREATE OR REPLACE VIEW {RUNS} AS SELECT * FROM all_runs"));
    let mended = fixture.tool(run).run().exits(0).prints("covered: all rows created before ");
    assert!(!mended.stdout.contains("no reading has seen"), "{mended}");
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn rows_that_the_count_does_not_find_any_more_are_told() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 20);
    let running = with_held_put(&fixture, TWO_RANGES, 4);
    fixture.database.psql(&format!(
        "DELETE FROM {RUNS} WHERE id IN (md5('run199')::uuid, md5('run198')::uuid)"
    ));
    fixture.sls.release();
    running
        .wait()
        .exits(0)
        .tells("2 rows fewer than were read")
        .prints("2 rows were there when they were read and not when they were counted");
}

#[test]
fn nodes_that_come_behind_the_position_are_read_whatever_the_order() {
    for order in ["by-run", "walk"] {
        let fixture = Fixture::new("dify-1.12");
        fixture.fill(50, 20);
        let run = format!(
            "run --tables workflow_node_executions --workers 1 --batch-kib 64 \
             --range-rows 1000 --key-order {order}"
        );
        let running = with_held_put(&fixture, &run, 3);
        // Behind every position, and reached by no run.
        insert_old(&fixture, NODES, 0, "15 days");
        // A node of the first run.
        fixture.database.psql(&format!(
            "INSERT INTO {NODES} SELECT (jsonb_populate_record(n, \
             jsonb_build_object('id', '{}'))).* FROM {NODES} n \
             WHERE workflow_run_id = md5('run49')::uuid LIMIT 1",
            id(1)
        ));
        fixture.sls.release();
        running.wait().exits(0);
        let stored = fixture.stored("workflow_node_execution");
        assert!(stored.contains(&id(0)) && stored.contains(&id(1)), "{order}");
        fixture.tool("run").run().exits(0);
        fixture.holds_every_finished_row_once();
    }
}

#[test]
fn a_held_row_that_is_missing_once_is_not_gone() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(50, 5);
    let run = "run --tables workflow_runs";
    fixture.tool(run).run().exits(0).prints("held, running: 1");
    // As a replica shows it that lags, or Dify's clean-up before its restore.
    fixture.database.psql(&format!(
        "CREATE TABLE away AS SELECT * FROM {RUNS} WHERE status = 'running'; \
         DELETE FROM {RUNS} WHERE status = 'running'"
    ));
    fixture.tool(run).run().exits(0).prints("held, missing: 1").prints("0 gone");
    fixture.database.psql(&format!(
        "INSERT INTO {RUNS} SELECT * FROM away; UPDATE {RUNS} SET status = 'succeeded', \
         finished_at = created_at + interval '1 second' WHERE status = 'running'"
    ));
    fixture.tool(run).run().exits(0).prints("0 held");
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_row_that_is_missing_for_two_days_is_gone_and_is_read_as_new_when_it_is_back() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(50, 5);
    let run = "run --tables workflow_runs";
    fixture.tool(run).run().exits(0);
    fixture.database.psql(&format!(
        "CREATE TABLE away AS SELECT * FROM {RUNS} WHERE status = 'running'; \
         DELETE FROM {RUNS} WHERE status = 'running'"
    ));
    fixture.tool(run).run().exits(0).prints("held, missing: 1");
    fixture.tool(run).run().exits(0).prints("held, missing: 1");
    fixture
        .database
        .psql("UPDATE sls_backfill.hold SET last_held_at = last_held_at - interval '49 hours'");
    fixture.tool(run).run().exits(0).prints("0 held").prints("1 gone");
    fixture.database.psql(&format!(
        "INSERT INTO {RUNS} SELECT * FROM away; UPDATE {RUNS} SET status = 'succeeded', \
         finished_at = created_at + interval '1 second' WHERE status = 'running'"
    ));
    fixture.tool(&format!("{run} --since 2000-01-01")).run().exits(0);
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_row_that_vanishes_between_look_and_read_is_looked_for_again() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 20);
    // All rows are looked at before the first batch is cut.
    let running =
        with_held_put(&fixture, "run --tables workflow_runs --workers 1 --batch-kib 64", 1);
    fixture.database.psql(&format!(
        "CREATE TABLE away AS SELECT * FROM {RUNS} WHERE id = md5('run51')::uuid; \
         DELETE FROM {RUNS} WHERE id = md5('run51')::uuid"
    ));
    fixture.sls.release();
    running.wait().exits(0).prints("held, missing: 1").prints("0 gone");
    fixture.database.psql(&format!("INSERT INTO {RUNS} SELECT * FROM away"));
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}
