//! The proof that a row goes by: how old it may be, and what it costs.

use std::time::Duration;

use serde_json::json;

use crate::harness::fixture::Fixture;
use crate::harness::tool::Tool;
use crate::purge::{NODES, batch_of, count, migrated, purge};

#[test]
fn a_proof_that_became_too_old_while_a_row_was_waited_for_is_renewed() {
    let fixture = migrated();
    let id = fixture.finished("workflow_runs")[0].clone();
    let rows: u64 = fixture
        .database
        .psql(&format!(
            "SELECT rows FROM sls_backfill.batch WHERE id = '{}'",
            batch_of(&fixture, &id)
        ))
        .parse()
        .unwrap();
    let locked = fixture.database.hold_row("workflow_runs", &id);
    let running = purge(
        &fixture,
        " --tables workflow_runs --proof-age-max-s 1 --lock-timeout-ms 30000 \
         --statement-timeout-ms 30000",
    )
    .spawn();
    let waiting = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() \
                   AND wait_event_type = 'Lock'";
    fixture.database.wait_until(waiting, "t");
    // SLS held it when it was proved, and a second later not any more.
    fixture.sls.tamper("workflow_execution", &json!({"drop_log": {"id": id}}));
    std::thread::sleep(Duration::from_millis(1100));
    drop(locked);
    running.wait().exits(4).tells("rows are found in SLS");
    assert_eq!(
        count(&fixture.database, "workflow_runs"),
        2 + rows,
        "its batch stays, and no other"
    );
}

#[test]
fn batches_that_lie_together_are_pulled_once() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(400, 20);
    fixture.tool("run --batch-kib 64").run().exits(0);
    let batches: u64 =
        fixture.database.psql("SELECT count(*) FROM sls_backfill.batch").parse().unwrap();
    let requests = |purge: Tool, prints: &str| {
        let before = fixture.sls.stats()["requests"].as_u64().unwrap();
        purge.run().exits(0).prints(prints);
        fixture.sls.stats()["requests"].as_u64().unwrap() - before
    };
    let of_no_batch = requests(
        fixture.tool("purge --older-than 1000d --execute --yes"),
        "workflow_runs: 0 rows deleted",
    );
    let of_all = requests(purge(&fixture, ""), "workflow_runs: 392 rows deleted");
    let pulled = of_all - of_no_batch;
    assert!(batches > 30, "{batches}");
    assert!(pulled < batches * 3 / 4, "{pulled} pages for {batches} batches");
}

#[test]
fn a_plan_counts_of_a_batch_that_is_purged_in_part_what_is_left() {
    let fixture = migrated();
    let total = |name: &str| -> u64 {
        let json = fixture.tool("purge --older-than 0h --output json").run().exits(0);
        let plan: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
        let total = &plan["plan"]["workflow_runs"]["total"];
        total[name].as_str().unwrap().parse().unwrap()
    };
    assert_eq!((total("proved"), total("purged")), (118, 0));
    let id = fixture.finished("workflow_runs")[1].clone();
    fixture.database.psql(&format!(
        "INSERT INTO workflow_pauses (workflow_id, workflow_run_id, state_object_key, id) \
         VALUES ('{id}', '{id}', 'k', '{id}')"
    ));
    purge(&fixture, "").run().exits(0).prints("117 rows deleted");
    assert_eq!(total("proved"), 1);
    fixture
        .tool("purge --older-than 0h --tables workflow_node_executions")
        .run()
        .exits(0)
        .prints("rows/s (as the latest purge)");
}

#[test]
fn a_node_whose_payload_went_to_object_storage_after_it_was_sent_stays_with_its_files() {
    let fixture = migrated();
    let nodes = fixture.finished(NODES);
    // Dify has shortened the one since, and not the other; nobody can tell whether it has.
    fixture.database.psql(&format!(
        "UPDATE {NODES} SET outputs = '{{\"short\": 1}}' WHERE id = '{0}'; \
         INSERT INTO workflow_node_execution_offload (tenant_id, app_id, node_execution_id, type, \
           file_id) SELECT tenant_id, app_id, id, 'outputs', id FROM {NODES} \
         WHERE id IN ('{0}', '{1}')",
        nodes[0], nodes[1]
    ));
    purge(&fixture, "").run().exits(0).prints("2 stay: its payload lies in object storage");
    let left = format!(
        "SELECT count(*) FROM {NODES} n JOIN workflow_node_execution_offload o \
         ON o.node_execution_id = n.id"
    );
    assert_eq!(fixture.database.psql(&left), "2");
    // A row that has one before it is read is held, so it is in no batch that could be purged.
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(20, 5);
    fixture.database.psql(&format!(
        "INSERT INTO workflow_node_execution_offload (tenant_id, app_id, node_execution_id, type, \
           file_id) SELECT tenant_id, app_id, id, 'outputs', id FROM {NODES}"
    ));
    let all = count(&fixture.database, NODES);
    fixture.tool("run").run().exits(0);
    purge(&fixture, "").run().exits(0);
    assert_eq!(count(&fixture.database, NODES), all);
    let sent = format!("SELECT count(*) FROM sls_backfill.batch WHERE table_name = '{NODES}'");
    assert_eq!(fixture.database.psql(&sent), "0");
}
