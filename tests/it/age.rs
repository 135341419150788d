//! How old logs may be: canaries, TTLs, and an SLS that takes no old logs.

use serde_json::json;

use crate::harness::world::World;

/// How many batches of the ledger are in each state.
fn batches(world: &World) -> String {
    let sql = "SELECT state, count(*) FROM sls_backfill.batch GROUP BY state ORDER BY state";
    world.database.psql(sql).trim().replace('\n', " ")
}

#[test]
fn the_oldest_batch_is_pulled_back_and_found_before_others_go() {
    let world = World::new("dify-1.12");
    world.fill(400, 300);
    world
        .tool("run --batch-kib 64 --range-rows 50")
        .run()
        .exits(0)
        .tells("workflow_runs: rows of ")
        .tells("go first; others of that age follow when these are proved")
        .tells("pulled back, counted and found after")
        .tells("workflow_node_executions: SLS keeps rows of ");
    world.holds_every_finished_row_once();
    let proved = "SELECT count(*) FROM sls_backfill.proved_age a JOIN sls_backfill.batch b \
                  ON b.id = a.batch_id AND b.state = 'proved' \
                  AND a.since = date_trunc('second', b.finished_first)";
    assert_eq!(world.database.psql(proved).trim(), "2");
    // What is proved stays proved: a young row needs no canary.
    world.database.psql(
        "UPDATE workflow_runs SET status = 'succeeded', finished_at = created_at \
         WHERE status = 'running'",
    );
    let later = world.tool("run").run().exits(0);
    assert!(!later.stderr.contains("go first"), "{later}");
    world.holds_every_finished_row_once();
}

#[test]
fn logs_that_are_out_of_range_stop_the_run_before_a_second_batch_goes() {
    let world = World::new("dify-1.12");
    world.fill(400, 300);
    let refuse = json!({
        "status": 400, "code": "PostBodyInvalid", "message": "The post data time is out of range",
    });
    world.sls.post(
        "/_sim/faults",
        &json!({"kind": "put", "nth": 1, "times": 1000, "action": {"refuse": refuse}}),
    );
    world
        .tool("run --batch-kib 64 --range-rows 50")
        .run()
        .exits(70)
        .tells(
            "SLS takes no log as old as these: PostBodyInvalid: The post data time is out of range",
        )
        .tells("are held `expired`; nothing was deleted anywhere")
        .tells("dify-sls-backfill run --log-time ingest --new-conversion");
    assert_eq!(batches(&world), "abandoned|1", "one batch was tried, and no other");
    world.sls.forget_faults();
    // Who has mended the cause runs again.
    world.tool("run").run().exits(0);
    world.holds_every_finished_row_once();
}

#[test]
fn the_time_of_sending_may_be_the_log_time() {
    let world = World::new("dify-1.12");
    world.fill(200, 300);
    world.tool("run --max-rows 20 --tables workflow_runs").run().exits(75);
    world.tool("run --log-time ingest").run().exits(3).tells("the log time is the time of sending");
    world.tool("run --log-time ingest --new-conversion").run().exits(0);
    world.holds_every_finished_row_once();
    let logs = world.sls.logs("workflow_execution");
    let finished = logs.iter().filter(|log| {
        let at = log.field("finished_at");
        let unix =
            world.database.psql(&format!("SELECT floor(extract(epoch FROM '{at}'::timestamp))"));
        unix.trim() == log.time.to_string()
    });
    assert_eq!((finished.count(), logs.len()), (20, 196));
}
