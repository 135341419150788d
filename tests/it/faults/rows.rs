//! The rows of the table that are about rows: what changes, vanishes, finishes late, or is looked
//! at by two.

use serde_json::json;

use crate::faults::Numbers::{Proven, Unproven};
use crate::faults::{Case, SHORT, ends_well, fault};
use crate::harness::at_once;
use crate::harness::fixture::TABLES;

/// A run that left two batches open that never arrived.
fn with_open_batches(numbers: crate::faults::Numbers) -> crate::harness::fixture::Fixture {
    with_open_batches_of("workflow_runs", numbers)
}

fn with_open_batches_of(
    table: &str,
    numbers: crate::faults::Numbers,
) -> crate::harness::fixture::Fixture {
    let fixture =
        Case { faults: vec![fault("put", 3, 100_000, json!("cut_before"))], ..Case::of(numbers) }
            .fixture();
    let mut running = fixture.tool(&format!("{SHORT} --workers 2 --tables {table}")).spawn();
    running.wait_for("no answer from SLS");
    let running = running;
    running.kill();
    fixture.sls.forget_faults();
    let open = "SELECT count(*) FROM sls_backfill.batch WHERE state = 'intent'";
    assert_ne!(fixture.database.psql(open).trim(), "0");
    fixture
}

/// Rows of the open batches.
const OPEN_ROWS: &str = "SELECT encode(substring(row_ids FROM 16 * n + 1 FOR 16), 'hex')::uuid \
    FROM sls_backfill.batch JOIN sls_backfill.batch_rows ON batch_id = id, \
    generate_series(0, rows - 1) n WHERE state = 'intent'";

#[test]
fn rows_that_change_between_intent_and_recovery_are_sent_as_they_are_now() {
    at_once([Proven, Unproven], |numbers| {
        let fixture = with_open_batches(numbers);
        fixture.database.psql(&format!(
            "UPDATE workflow_runs SET outputs = '{{\"a\": \"changed\"}}' WHERE id IN ({OPEN_ROWS})"
        ));
        fixture.tool(SHORT).run().exits(0).tells(" read again");
        let changed = fixture
            .sls
            .logs("workflow_execution")
            .iter()
            .filter(|log| log.field("outputs").contains("changed"))
            .count();
        assert_ne!(changed, 0);
        ends_well(&fixture);
    });
}

#[test]
fn rows_that_are_offloaded_between_intent_and_recovery_are_held_and_never_sent_shortened() {
    at_once([Proven, Unproven], |numbers| {
        let fixture = with_open_batches_of("workflow_node_executions", numbers);
        fixture.database.psql(&format!(
            "CREATE TEMP TABLE open AS {OPEN_ROWS}; \
             INSERT INTO workflow_node_execution_offload (tenant_id, app_id, node_execution_id, \
             type, file_id) SELECT gen_random_uuid(), gen_random_uuid(), encode, 'outputs', \
             gen_random_uuid() FROM open; \
             UPDATE workflow_node_executions SET outputs = '{{\"shortened\": true}}' \
             WHERE id IN (SELECT * FROM open)"
        ));
        let offloaded = "SELECT node_execution_id FROM workflow_node_execution_offload";
        let offloaded = fixture.database.psql(offloaded);
        fixture.tool(SHORT).run().exits(0).tells(" read again");
        let held = fixture.held("workflow_node_executions");
        let stored = fixture.stored("workflow_node_execution");
        let of_offloaded = |id: &str| held.get(id).is_some_and(|reason| reason == "offloaded");
        assert!(offloaded.lines().any(of_offloaded));
        // A batch that came and was not acknowledged yet came as it was.
        let is_safe = |id: &str| of_offloaded(id) || stored.iter().any(|stored| stored == id);
        assert!(offloaded.lines().all(is_safe));
        for log in fixture.sls.logs("workflow_node_execution") {
            assert!(!log.field("outputs").contains("shortened"), "{log:?}");
        }
        fixture.database.psql("DELETE FROM workflow_node_execution_offload");
        ends_well(&fixture);
    });
}

#[test]
fn a_batch_that_was_never_answered_is_halved_and_goes_through() {
    at_once([Proven, Unproven], |numbers| {
        let fixture = with_open_batches(numbers);
        fixture.database.psql("UPDATE sls_backfill.batch SET unknowns = 10 WHERE state = 'intent'");
        fixture.tool(SHORT).run().exits(0).tells(" halved, 0 read again, 0 still in doubt");
        let halves = "SELECT count(*) > 0 FROM sls_backfill.batch WHERE parent_id IS NOT NULL \
                      AND state = 'proved'";
        assert_eq!(fixture.database.psql(halves).trim(), "t");
        ends_well(&fixture);
    });
}

#[test]
fn rows_that_vanish_between_intent_and_recovery_are_held_until_they_are_gone() {
    at_once([Proven, Unproven], |numbers| {
        let fixture = with_open_batches(numbers);
        // The first row of every open batch, and its nodes.
        fixture.database.psql(
            "CREATE TEMP TABLE victims AS SELECT encode(substring(row_ids FROM 1 FOR 16), \
             'hex')::uuid AS id FROM sls_backfill.batch b JOIN sls_backfill.batch_rows \
             ON batch_id = b.id WHERE state = 'intent'; \
             DELETE FROM workflow_runs WHERE id IN (SELECT id FROM victims); \
             DELETE FROM workflow_node_executions WHERE id IN (SELECT id FROM victims)",
        );
        fixture.tool(SHORT).run().exits(0).tells(" read again");
        let missing = fixture.held("workflow_runs");
        let missing = missing.values().filter(|reason| *reason == "missing").count();
        assert_ne!(missing, 0);
        ends_well(&fixture);
        fixture.database.psql(
            "UPDATE sls_backfill.hold SET last_held_at = last_held_at - interval '49 hours' \
             WHERE reason = 'missing'",
        );
        fixture.tool(SHORT).run().exits(0).prints(&format!(" + {missing} gone"));
        ends_well(&fixture);
    });
}

#[test]
fn a_column_that_vanishes_between_intent_and_recovery_is_lived_with() {
    let fixture = with_open_batches(Unproven);
    fixture.database.psql("ALTER TABLE workflow_runs DROP COLUMN exceptions_count");
    fixture.tool(&format!("{SHORT} --new-conversion")).run().exits(0).tells(" read again");
    ends_well(&fixture);
}

#[test]
fn a_later_date_in_the_ledger_stays_though_the_clock_went_back() {
    let fixture = with_open_batches(Proven);
    // As if SLS's clock had been 20 min ahead when they were signed: it may take them so long.
    fixture.database.psql(
        "UPDATE sls_backfill.batch SET signed_at = signed_at + interval '20 minutes' \
         WHERE state = 'intent'",
    );
    fixture.sls.order(&fault("put", 1, 100_000, json!("cut_before")));
    let run = format!("{SHORT} --max-rows 1");
    fixture.tool(&run).run().exits(75).tells("a request may still be on its way to SLS");
    let lost = "SELECT count(*) FROM sls_backfill.batch WHERE state = 'intent' \
                AND parent_id IS NULL AND signed_at > now() + interval '10 minutes'";
    assert_ne!(fixture.database.psql(lost).trim(), "0");
    fixture.database.psql(
        "UPDATE sls_backfill.batch SET signed_at = signed_at - interval '20 minutes' \
         WHERE state = 'intent'",
    );
    ends_well(&fixture);
}

#[test]
fn holds_of_a_finished_pass_outlive_a_column() {
    let fixture = Case::of(Proven).fixture();
    fixture.tool(SHORT).run().exits(0);
    fixture.database.psql("ALTER TABLE workflow_runs DROP COLUMN exceptions_count");
    fixture.database.psql(
        "UPDATE workflow_runs SET status = 'succeeded', finished_at = created_at \
         + interval '2 seconds' WHERE status = 'running'",
    );
    fixture.tool(SHORT).run().exits(0);
    assert!(fixture.held("workflow_runs").is_empty());
    ends_well(&fixture);
}

#[test]
fn rows_that_are_deleted_and_come_back_are_not_sent_again() {
    let fixture = Case::of(Proven).fixture();
    fixture.tool(SHORT).run().exits(0);
    let each = |sql: &str| {
        for (table, _) in TABLES {
            fixture.database.psql(&sql.replace("TABLE_NAME", table));
        }
    };
    each("CREATE TABLE kept_TABLE_NAME AS TABLE TABLE_NAME; DELETE FROM TABLE_NAME");
    fixture.tool(SHORT).run().exits(0);
    each("INSERT INTO TABLE_NAME TABLE kept_TABLE_NAME");
    let everything = format!("{SHORT} --since 2000-01-01");
    fixture
        .tool(&everything)
        .run()
        .exits(0)
        .tells("workflow_runs: 400 rows seen, 0 sent ")
        .tells("workflow_node_executions: 1,600 rows seen, 0 sent ");
    ends_well(&fixture);
}

#[test]
fn rows_committed_late_are_found_within_the_look_back() {
    let fixture = Case::of(Proven).fixture();
    fixture.tool(SHORT).run().exits(0);
    // Of before the end of what is covered, and not there when it was read.
    fixture.database.psql(
        "INSERT INTO workflow_runs (id, tenant_id, app_id, workflow_id, type, triggered_from, \
         version, graph, inputs, status, outputs, elapsed_time, total_tokens, total_steps, \
         created_by_role, created_by, created_at, finished_at) \
         SELECT md5('late')::uuid, tenant_id, app_id, workflow_id, type, triggered_from, version, \
         graph, inputs, status, outputs, elapsed_time, total_tokens, total_steps, created_by_role, \
         created_by, now() AT TIME ZONE 'UTC' - interval '40 hours', \
         now() AT TIME ZONE 'UTC' - interval '39 hours' \
         FROM workflow_runs WHERE status = 'succeeded' LIMIT 1",
    );
    fixture.tool(SHORT).run().exits(0);
    ends_well(&fixture);
}

#[test]
fn rows_that_finish_later_are_sent_by_a_later_run() {
    let fixture = Case::of(Proven).fixture();
    fixture.tool(SHORT).run().exits(0);
    fixture.database.psql(
        "UPDATE workflow_runs SET status = 'succeeded', finished_at = created_at \
         + interval '2 seconds' WHERE status = 'running'; \
         UPDATE workflow_node_executions SET status = 'failed', finished_at = created_at \
         + interval '2 seconds' WHERE status = 'running'",
    );
    fixture.tool(SHORT).run().exits(0);
    assert!(fixture.held("workflow_runs").is_empty());
    ends_well(&fixture);
}

#[test]
fn holds_are_tried_by_one_process_at_a_time() {
    let fixture = Case::of(Proven).fixture();
    fixture.tool(SHORT).run().exits(0);
    fixture.database.psql(
        "UPDATE workflow_runs SET status = 'succeeded', finished_at = created_at \
         + interval '2 seconds' WHERE status = 'running'",
    );
    fixture.sls.order(&fault("put", 1, 1, json!("hold")));
    let first = fixture.tool(SHORT).spawn();
    fixture.sls.wait_until("held", 1);
    // It finds the range of holds taken, and nothing else to do.
    let second = fixture.tool(&format!("{SHORT} --join")).spawn();
    std::thread::sleep(std::time::Duration::from_millis(500));
    fixture.sls.release();
    first.wait().exits(0);
    second.wait().exits(0);
    ends_well(&fixture);
}

#[test]
fn overlapping_windows_and_filters_send_every_row_once() {
    let fixture = Case::of(Proven).fixture();
    let day = |days: u32| {
        let sql = format!("SELECT to_char(now() - interval '{days} days', 'YYYY-MM-DD')");
        fixture.database.psql(&sql).trim().to_owned()
    };
    let tenant = fixture.database.psql("SELECT tenant_id FROM workflow_runs LIMIT 1");
    for arguments in [
        format!("--since {} --until {}", day(10), day(5)),
        format!("--since {} --until {}", day(20), day(7)),
        format!("--tenant {}", tenant.trim()),
        format!("--since {}", day(12)),
        String::new(),
        format!("--since {}", day(400)),
    ] {
        fixture.tool(format!("{SHORT} {arguments}").trim()).run().exits(0);
    }
    ends_well(&fixture);
}
