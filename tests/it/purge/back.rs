//! `restore`: what was purged comes back as it was, and only what was asked for.

use serde_json::json;

use crate::harness::fixture::{Fixture, TABLES};
use crate::purge::{NODES, count, migrated, purge};

/// Every row of a table but what a log cannot tell apart, as one text.
fn content(fixture: &Fixture, table: &str) -> String {
    let columns = match table {
        "workflow_runs" => {
            "id, tenant_id, app_id, workflow_id, type, triggered_from, version, \
            graph, inputs, outputs, status, coalesce(error, ''), elapsed_time, total_tokens, \
            total_steps, created_by_role, created_by, created_at, finished_at"
        }
        _ => {
            "id, tenant_id, app_id, workflow_id, triggered_from, workflow_run_id, index, \
            coalesce(predecessor_node_id, ''), node_id, node_type, title, inputs, \
            coalesce(process_data, '{}'), outputs, status, coalesce(error, ''), elapsed_time, \
            execution_metadata, created_at, created_by_role, created_by, finished_at"
        }
    };
    fixture.database.psql(&format!("SELECT {columns} FROM {table} ORDER BY id"))
}

#[test]
fn purged_rows_come_back_as_they_were_and_are_not_sent_again() {
    let fixture = migrated();
    let before = TABLES.map(|(table, _)| content(&fixture, table));
    purge(&fixture, "").run().exits(0);
    let all = "restore --since 2000-01-01";
    fixture.tool(all).run().exits(0).prints("workflow_runs: 118 rows would come back");
    assert_eq!(count(&fixture.database, "workflow_runs"), 2, "a plan writes nothing");
    let back = format!("{all} --execute");
    fixture.tool(&back).run().exits(0).prints("workflow_runs: 118 rows are back");
    assert_eq!(before, TABLES.map(|(table, _)| content(&fixture, table)));
    fixture.tool(&back).run().exits(0).prints("workflow_runs: 0 rows are back, 0 were there");
    fixture.tool("run --since 2000-01-01").run().exits(0).tells("nothing new to do");
    fixture.holds_every_finished_row_once();
    // And they can go again.
    purge(&fixture, "").run().exits(0).prints("workflow_runs: 118 rows deleted");
}

#[test]
fn one_run_comes_back_with_its_nodes() {
    let fixture = migrated();
    let run = fixture.finished("workflow_runs")[11].clone();
    let nodes = format!("SELECT count(*) FROM {NODES} WHERE workflow_run_id = '{run}'");
    let had = fixture.database.psql(&nodes);
    purge(&fixture, "").run().exits(0);
    fixture
        .tool(&format!("restore --run {run} --execute"))
        .run()
        .exits(0)
        .prints("1 rows are back");
    assert_eq!(fixture.database.psql(&nodes), had);
    assert_eq!(count(&fixture.database, "workflow_runs"), 3);
}

#[test]
fn a_row_that_somebody_put_in_again_stays_as_it_is() {
    let fixture = migrated();
    let id = fixture.finished("workflow_runs")[2].clone();
    purge(&fixture, "").run().exits(0);
    fixture.insert("workflow_runs", json!({"id": id, "outputs": "{\"own\": 1}"}));
    fixture
        .tool("restore --since 2000-01-01 --execute")
        .run()
        .exits(0)
        .prints("117 rows are back")
        .prints(&format!("there already, with other values: {id}"));
    let own =
        fixture.database.psql(&format!("SELECT outputs FROM workflow_runs WHERE id = '{id}'"));
    assert_eq!(own.trim(), "{\"own\": 1}");
}

#[test]
fn a_column_that_the_table_lost_is_named_before_anything_comes_back() {
    let fixture = Fixture::new("dify-1.12");
    fixture.database.psql("ALTER TABLE workflow_runs ADD COLUMN extra text DEFAULT 'x'");
    fixture.fill(20, 5);
    fixture.tool("run --tables workflow_runs").run().exits(0);
    purge(&fixture, " --tables workflow_runs").run().exits(0);
    fixture.database.psql("ALTER TABLE workflow_runs DROP COLUMN extra");
    let back = "restore --since 2000-01-01 --execute --tables workflow_runs";
    fixture.tool(back).run().exits(4).tells("columns that the table lacks: extra");
    assert_eq!(count(&fixture.database, "workflow_runs"), 0);
    fixture.tool(&format!("{back} --drop-unknown")).run().exits(0).prints("20 rows are back");
}

#[test]
fn what_one_pass_has_moved_comes_back_alone() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(60, 20);
    let middle = fixture
        .database
        .psql("SELECT to_char((now() AT TIME ZONE 'UTC') - interval '10 days', 'YYYY-MM-DD')");
    fixture.tool(&format!("run --tables workflow_runs --until {middle}")).run().exits(0);
    fixture.tool("run --tables workflow_runs").run().exits(0);
    let passes = "SELECT pass_id, sum(rows) FROM sls_backfill.batch GROUP BY 1 ORDER BY 1";
    let passes = fixture.database.psql(passes);
    let passes: Vec<_> = passes.trim().lines().filter_map(|line| line.split_once('|')).collect();
    let [(_, _), (second, rows)] = passes.as_slice() else { panic!("two passes: {passes:?}") };
    purge(&fixture, " --tables workflow_runs").run().exits(0);
    let unfinished = count(&fixture.database, "workflow_runs");
    fixture
        .tool(&format!("restore --pass {second} --execute --tables workflow_runs"))
        .run()
        .exits(0)
        .prints(&format!("workflow_runs: {rows} rows are back"));
    let there: u64 = rows.parse().unwrap();
    assert_eq!(count(&fixture.database, "workflow_runs"), unfinished + there);
    let marks = "SELECT DISTINCT pass_id FROM sls_backfill.batch WHERE purged_rows > 0";
    assert_eq!(fixture.database.psql(marks), passes[0].0, "the other pass stays away");
}
