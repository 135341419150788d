//! `run`: what it moves, what it holds, what it leaves alone.

use crate::harness::world::World;

#[test]
fn every_finished_row_is_in_sls_once_and_a_second_run_has_nothing_to_do() {
    let world = World::new("dify-1.12");
    world.fill(500, 20);
    world
        .tool("run")
        .run()
        .exits(0)
        .prints("workflow_runs: 500 rows seen = 490 in SLS + 10 held + 0 already + 0 gone")
        .prints("workflow_node_executions: 2,000 rows seen = 1,960 in SLS + 40 held")
        .prints("held, running: 40")
        .tells("0 differ");
    world.holds_every_finished_row_once();
    world.tool("run").run().exits(0).tells("nothing new to do");
    world.holds_every_finished_row_once();
}

#[test]
fn small_ranges_in_every_order_read_no_row_twice() {
    for order in ["by-run", "walk"] {
        let world = World::new("dify-1.12");
        world.fill(500, 20);
        world
            .tool(&format!(
                "run --key-order {order} --range-rows 60 --tables workflow_node_executions"
            ))
            .run()
            .exits(0)
            .prints("2,000 rows seen = 1,960 in SLS + 40 held + 0 already + 0 gone");
        let differing = "SELECT count(*) FROM sls_backfill.range WHERE rows_counted <> rows_seen";
        assert_eq!(world.database.psql(differing).trim(), "0");
        let ranges = world.database.psql("SELECT count(*) FROM sls_backfill.range");
        assert!(ranges.trim().parse::<u32>().unwrap() > 20, "{ranges}");
    }
}

#[test]
fn a_dry_run_writes_nothing_anywhere() {
    let world = World::new("dify-1.12");
    world.fill(100, 5);
    world.database.psql("DROP SCHEMA sls_backfill CASCADE");
    let before = world.sls.stats();
    // Without any setting of SLS: it has no client with which it could write.
    crate::harness::tool::Tool::new(["run", "--dry-run"])
        .envs(world.database.env())
        .run()
        .exits(0)
        .prints("workflow_runs: 100 rows: 98 would go to SLS in ")
        .prints("workflow_node_executions: 400 rows: 392 would go to SLS in ")
        .prints("held, running: 8");
    assert_eq!(before, world.sls.stats());
    let schemas =
        world.database.psql("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'sls%'");
    assert_eq!(schemas.trim(), "0");
}

#[test]
fn a_dry_run_works_for_a_user_that_may_only_read() {
    let world = World::new("dify-1.12");
    world.fill(50, 5);
    let role = format!("reader_{}", world.database.name);
    world.database.psql(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'reader'; GRANT SELECT ON workflow_runs, \
         workflow_node_executions, workflow_node_execution_offload TO {role}"
    ));
    crate::harness::tool::Tool::new(["run", "--dry-run"])
        .envs(world.database.env())
        .env("DB_USERNAME", &role)
        .env("DB_PASSWORD", "reader")
        .run()
        .exits(0)
        .prints("workflow_runs: 50 rows: 49 would go");
    world.database.psql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
fn filters_choose_the_rows_and_a_later_run_takes_the_rest() {
    let world = World::new("dify-1.12");
    world.fill(300, 10);
    let tenant = world.database.psql("SELECT md5('t1')::uuid").trim().to_owned();
    let app = world.database.psql("SELECT md5('a1')::uuid").trim().to_owned();
    world.tool(&format!("run --tenant {tenant} --app {app}")).run().exits(0);
    let logs = world.sls.logs("workflow_node_execution");
    assert!(!logs.is_empty());
    assert!(logs.iter().all(|log| log.field("tenant_id") == tenant && log.field("app_id") == app));
    let day = world.database.psql("SELECT ((now() AT TIME ZONE 'UTC') - interval '3 days')::date");
    let day = day.trim();
    world.tool(&format!("run --tables workflow_runs --since {day}")).run().exits(0);
    let runs = world.stored("workflow_execution").len();
    assert!(runs < 290, "{runs}: not all of them are so young");
    world.tool("run").run().exits(0);
    world.holds_every_finished_row_once();
}

#[test]
fn max_rows_stops_in_time_and_the_next_run_goes_on() {
    let world = World::new("dify-1.12");
    world.fill(200, 10);
    world.tool("run --max-rows 123").run().exits(75).tells("--max-rows is reached");
    assert_eq!(world.stored("workflow_execution").len(), 123);
    assert_eq!(world.stored("workflow_node_execution").len(), 0);
    world.tool("run").run().exits(0);
    world.holds_every_finished_row_once();
}

#[test]
fn held_rows_are_tried_again_when_their_reason_can_pass() {
    let world = World::new("dify-1.12");
    world.fill(50, 5);
    let node = world.finished("workflow_node_executions")[0].clone();
    let gone = world.database.psql("SELECT id FROM workflow_runs WHERE status = 'running'");
    world.database.psql(&format!(
        "INSERT INTO workflow_node_execution_offload (tenant_id, app_id, node_execution_id, type, \
         file_id) VALUES (gen_random_uuid(), gen_random_uuid(), '{node}', 'inputs', \
         gen_random_uuid()); \
         UPDATE workflow_node_executions SET finished_at = NULL \
         WHERE id = (SELECT id FROM workflow_node_executions WHERE status = 'succeeded' \
                     AND id <> '{node}' ORDER BY id LIMIT 1)"
    ));
    world
        .tool("run")
        .run()
        .exits(0)
        .prints("held, offloaded: 1")
        .prints("held, no finish time: 1")
        .prints("held, running: 4");
    // The payload comes back, the stuck ones end, one vanishes.
    world.database.psql(&format!(
        "DELETE FROM workflow_node_execution_offload; \
         UPDATE workflow_node_executions SET status = 'succeeded', \
         finished_at = created_at + interval '2 seconds' WHERE finished_at IS NULL; \
         DELETE FROM workflow_runs WHERE id = '{}'",
        gone.trim()
    ));
    world
        .tool("run")
        .run()
        .exits(0)
        .prints("= 49 in SLS + 0 held + 19 already + 1 gone")
        .prints("200 in SLS + 0 held");
    world.holds_every_finished_row_once();
}

#[test]
fn another_conversion_than_the_open_passs_is_refused() {
    let world = World::new("dify-1.12");
    world.fill(100, 5);
    world.tool("run --max-rows 10").run().exits(75);
    world
        .tool("run")
        .env("LOGSTORE_ENABLE_PUT_GRAPH_FIELD", "false")
        .run()
        .exits(3)
        .tells("graph is not written")
        .tells("hint: finish it with the settings it was begun with");
    world
        .tool("run --new-conversion")
        .env("LOGSTORE_ENABLE_PUT_GRAPH_FIELD", "false")
        .run()
        .exits(0)
        .tells("from now on graph is not written");
    world.holds_every_finished_row_once();
    let graphs: Vec<_> = world.sls.logs("workflow_execution");
    let with = graphs.iter().filter(|log| log.field("graph") != "{}").count();
    assert_eq!((with, graphs.len()), (10, 98));
    // A new pass may have a new conversion.
    world.tool("run").run().exits(0);
    world.holds_every_finished_row_once();
}

#[test]
fn another_project_is_refused() {
    let world = World::new("dify-1.12");
    world
        .tool("init")
        .env("ALIYUN_SLS_PROJECT_NAME", "another")
        .run()
        .exits(3)
        .tells("this ledger's rows went to SLS project dify-logs, not to another");
}

#[test]
fn what_sls_holds_otherwise_than_sent_ends_with_a_difference() {
    let world = World::new("dify-1.12");
    world.fill(100, 5);
    world.tool("run --verify none").run().exits(0);
    // The book says another digest than what was sent: as good as a changed byte in SLS.
    world.database.psql(
        "UPDATE sls_backfill.batch SET digest = sha256('x') WHERE table_name = 'workflow_runs'",
    );
    world.tool("run").run().exits(4).tells("are not in SLS as they were sent");
}
