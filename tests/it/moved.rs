//! Rows whose `created_at` is changed: ids decide whether a row was sent, whatever the window says.

use std::time::Duration;

use serde_json::json;

use crate::harness::fixture::Fixture;
use crate::harness::poll;

/// Every row, as if it had been created longer ago.
const MOVE_BACK: &str = "UPDATE workflow_runs SET created_at = created_at - interval '400 days'; \
     UPDATE workflow_node_executions SET created_at = created_at - interval '400 days'";

#[test]
fn a_row_whose_creation_time_was_changed_is_not_sent_again() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(300, 10);
    fixture.tool("run").run().exits(0);
    fixture.database.psql(MOVE_BACK);
    fixture.tool("run --since 2000-01-01").run().exits(0).tells("nothing new to do");
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_row_that_moves_behind_the_position_of_its_pass_is_not_sent_again() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(1200, 10);
    fixture.slow_down(200);
    let run = "run --batch-kib 64 --workers 1 --range-rows 300";
    let running = fixture.tool(run).spawn();
    let stored = "SELECT count(*) > 1 FROM sls_backfill.batch WHERE state <> 'intent'";
    poll("two batches in SLS", Duration::from_secs(30), || {
        (fixture.database.psql(stored) == "t").then_some(())
    });
    // What was read first is the oldest; now it is the youngest of the window.
    fixture.database.psql(
        "UPDATE workflow_runs SET created_at = (SELECT max(created_at) FROM workflow_runs) \
         WHERE id IN (SELECT id FROM workflow_runs ORDER BY created_at LIMIT 100)",
    );
    fixture.sls.forget_faults();
    running.wait().exits(0);
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_row_that_two_workers_have_looked_up_is_taken_by_one_of_them() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(1200, 10);
    // One worker's first request is held, with the rest of its range looked up and not recorded.
    fixture.sls.order(&json!({"kind": "put", "nth": 1, "times": 1, "action": "hold"}));
    // The other one is far from the youngest rows when they change.
    fixture.slow_down(200);
    let run =
        "run --workers 2 --batch-kib 64 --range-rows 300 --tables workflow_runs --verify none";
    let mut running = fixture.tool(run).spawn();
    let first = "SELECT range_id FROM sls_backfill.batch ORDER BY intended_at LIMIT 1";
    fixture.sls.wait_until("held", 1);
    let range = fixture.database.psql(first);
    // Its rows become the youngest, so that the other worker reads them, too.
    fixture.database.psql(
        "UPDATE workflow_runs SET created_at = (SELECT max(created_at) FROM workflow_runs) \
         WHERE id IN (SELECT id FROM workflow_runs ORDER BY created_at LIMIT 600) \
         AND id NOT IN (SELECT row_id FROM sls_backfill.live_workflow_runs)",
    );
    let open =
        format!("SELECT count(*) FROM sls_backfill.range WHERE state = 'open' AND id <> {range}");
    poll("the other worker's end", Duration::from_secs(30), || {
        let cut = fixture.database.psql("SELECT bool_or(cut_done) FROM sls_backfill.pass") == "t";
        (cut && fixture.database.psql(&open) == "0").then_some(())
    });
    fixture.sls.release();
    running.wait_for("were taken by another batch");
    running.wait().exits(0);
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_row_in_two_live_batches_is_told() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 10);
    fixture.tool("run").run().exits(0);
    fixture.tool("status").run().exits(0);
    // What only a damaged ledger can hold: its key refuses it.
    let row = fixture.database.psql(
        "WITH other AS (SELECT * FROM sls_backfill.batch WHERE table_name = 'workflow_runs' LIMIT 1), \
         planted AS (INSERT INTO sls_backfill.batch (id, pass_id, range_id, table_name, logstore, \
           state, rows, raw_bytes, digest, not_json, conversion_id, cursors, ingest_time, \
           created_first, finished_first, finished_last, generation) SELECT gen_random_uuid(), pass_id, range_id, \
           table_name, logstore, state, 1, 1, digest, 0, conversion_id, cursors, 0, created_first, \
           finished_first, finished_last, generation FROM other RETURNING id) \
         INSERT INTO sls_backfill.batch_rows (batch_id, row_ids, finished_days, day_rows) \
         SELECT planted.id, substring(r.row_ids FROM 1 FOR 16), '{2024-01-01}', '{1}' \
         FROM planted, other JOIN sls_backfill.batch_rows r ON r.batch_id = other.id \
         RETURNING encode(row_ids, 'hex')::uuid",
    );
    // The account itself adds up.
    fixture.database.psql(
        "UPDATE sls_backfill.range SET rows_seen = rows_seen + 1 WHERE id = \
         (SELECT range_id FROM sls_backfill.batch WHERE table_name = 'workflow_runs' LIMIT 1)",
    );
    fixture.tool("status").run().exits(4).tells(&format!("{row} is in "));
}
