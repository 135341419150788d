//! Rows that change between the look and the read.

use crate::harness::fixture::Fixture;
use crate::reading::{NODES, RUNS, ago, id, insert_old, with_held_put};

#[test]
fn a_row_that_is_offloaded_between_look_and_read_is_held_and_never_sent_shortened() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 20);
    // All rows are looked at before the first batch is cut.
    let run = "run --tables workflow_node_executions --workers 1 --batch-kib 64";
    let running = with_held_put(&fixture, run, 1);
    let node = "(SELECT id FROM workflow_node_executions \
                 WHERE workflow_run_id = md5('run1')::uuid ORDER BY id LIMIT 1)";
    fixture.database.psql(&format!(
        "INSERT INTO workflow_node_execution_offload (tenant_id, app_id, node_execution_id, \
         type, file_id) VALUES (gen_random_uuid(), gen_random_uuid(), {node}, 'outputs', \
         gen_random_uuid()); \
         UPDATE {NODES} SET outputs = '{{\"shortened\": true}}' WHERE id = {node}"
    ));
    fixture.sls.release();
    running.wait().exits(0).prints("held, offloaded: 1");
    for log in fixture.sls.logs("workflow_node_execution") {
        assert!(!log.field("outputs").contains("shortened"), "{log:?}");
    }
}

#[test]
fn a_row_that_grows_over_the_limit_between_look_and_read_is_held() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 20);
    let run = "run --tables workflow_runs --workers 1 --batch-kib 64 --row-mib-max 1";
    let running = with_held_put(&fixture, run, 1);
    fixture.database.psql(&format!(
        "UPDATE {RUNS} SET outputs = '\"' || repeat('abcdef', 250000) || '\"' \
         WHERE id = md5('run1')::uuid"
    ));
    fixture.sls.release();
    running.wait().exits(0).prints("held, too large: 1");
}

#[test]
fn a_row_that_is_resumed_between_look_and_read_keeps_the_time_when_it_finished() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 20);
    insert_old(&fixture, RUNS, 1, "3 hours");
    // As old as those that are looked at only in turn.
    fixture
        .database
        .psql(&format!("UPDATE {RUNS} SET created_at = created_at - interval '40 days'"));
    let running =
        with_held_put(&fixture, "run --tables workflow_runs --workers 1 --batch-kib 64", 1);
    let finished_at = ago(&fixture, "1 minute");
    fixture
        .database
        .psql(&format!("UPDATE {RUNS} SET finished_at = '{finished_at}' WHERE id = '{}'", id(1)));
    fixture.sls.release();
    running.wait().exits(0);
    let finished = format!(
        "SELECT reason, finished_at IS NOT NULL FROM sls_backfill.hold WHERE row_id = '{}'",
        id(1)
    );
    assert_eq!(fixture.database.psql(&finished).trim(), "running|t");
}
