//! Held rows: they come after the new ones, are shared by all, and take their turn.

use serde_json::json;

use crate::harness::fixture::Fixture;
use crate::reading::{NODES, RUNS, ago, id, insert_old, with_held_put};

/// So many nodes whose payload is in object storage, and the run that they belong to.
fn insert_offloaded(fixture: &Fixture, rows: u32) {
    insert_old(fixture, RUNS, 1, "10 days");
    insert_old(fixture, NODES, 1, "10 days");
    fixture.database.psql(&format!(
        "INSERT INTO {NODES} SELECT (jsonb_populate_record(n, jsonb_build_object( \
         'id', gen_random_uuid(), 'workflow_run_id', '{}'))).* FROM {NODES} n, \
         generate_series(2, {rows}); \
         INSERT INTO workflow_node_execution_offload (tenant_id, app_id, node_execution_id, \
         type, file_id) SELECT tenant_id, app_id, id, 'inputs', gen_random_uuid() \
         FROM {NODES}; ANALYZE {NODES}",
        id(1)
    ));
}

const FORGET_OFFLOADS: &str = "DELETE FROM workflow_node_execution_offload";

#[test]
fn a_new_row_goes_before_those_that_were_held() {
    let fixture = Fixture::new("dify-1.12");
    insert_offloaded(&fixture, 300);
    fixture.tool("run").run().exits(0).prints("held, offloaded: 300");
    fixture.database.psql(FORGET_OFFLOADS);
    insert_old(&fixture, NODES, 2, "3 hours");
    let running = with_held_put(&fixture, "run --workers 1 --batch-kib 64", 1);
    let kind = "SELECT r.kind, b.rows FROM sls_backfill.batch b \
                JOIN sls_backfill.range r ON r.id = b.range_id WHERE b.state = 'intent'";
    let kind = fixture.database.psql(kind);
    assert!(!kind.contains("holds") && kind.trim().ends_with("|1"), "{kind}");
    fixture.sls.release();
    running.wait().exits(0).prints("301 in SLS + 0 held");
    fixture.holds_every_finished_row_once();
}

#[test]
fn all_workers_and_processes_share_the_held_rows() {
    let fixture = Fixture::new("dify-1.12");
    insert_offloaded(&fixture, 9000);
    fixture.tool("run").run().exits(0).prints("held, offloaded: 9,000");
    fixture.database.psql(FORGET_OFFLOADS);
    fixture.slow_down(20);
    let mut first = fixture.tool("run --batch-kib 256 --workers 2").spawn();
    first.wait_for("workflow_node_executions: pass ");
    let second = fixture.tool("run --batch-kib 256 --workers 2 --join").spawn();
    first.wait().exits(0).tells("0 differ");
    second.wait().exits(0);
    let owners = "SELECT count(DISTINCT r.id) FROM sls_backfill.range r \
                  JOIN sls_backfill.batch b ON b.range_id = r.id WHERE r.kind LIKE 'holds%'";
    assert_eq!(fixture.database.psql(owners).trim(), "3", "ranges of 4,096 rows");
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn rows_that_are_held_for_long_take_their_turn() {
    let fixture = Fixture::new("dify-1.12");
    insert_offloaded(&fixture, 30);
    let run = "run --tables workflow_node_executions --held-rows-max 10";
    fixture.tool(run).run().exits(0);
    let tries = || {
        fixture
            .database
            .psql("SELECT string_agg(DISTINCT tries::text, ' '), sum(tries) FROM sls_backfill.hold")
    };
    assert_eq!(tries().trim(), "1|30");
    for (distinct, sum) in [("1 2", 40), ("1 2", 50), ("2", 60)] {
        fixture.tool(run).run().exits(0);
        assert_eq!(tries().trim(), format!("{distinct}|{sum}"));
    }
    // All that may go, goes, ten a run.
    fixture.database.psql(FORGET_OFFLOADS);
    for held in [20, 10, 0] {
        fixture.tool(run).run().exits(0).prints(&format!(" + {held} held"));
    }
}

#[test]
fn a_run_that_finishes_after_five_weeks_is_sent() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(50, 5);
    // It waits for a person.
    fixture.insert(
        RUNS,
        json!({"id": id(1), "status": "paused", "created_at": ago(&fixture, "35 days"),
               "finished_at": null}),
    );
    fixture.tool("run").run().exits(0).prints("held, running: 2");
    fixture.tool("run").run().exits(0).prints("held, running: 2");
    let finished_at = ago(&fixture, "2 hours");
    fixture.database.psql(&format!(
        "UPDATE {RUNS} SET status = 'succeeded', finished_at = '{finished_at}' \
         WHERE id = '{}'",
        id(1)
    ));
    fixture.tool("run").run().exits(0).prints("held, running: 1");
    assert!(fixture.stored("workflow_execution").contains(&id(1)));
    fixture.holds_every_finished_row_once();
}
