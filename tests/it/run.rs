//! `run`: what it moves, what it holds, what it leaves alone.

use crate::harness::fixture::Fixture;

#[test]
fn every_finished_row_is_in_sls_once_and_a_second_run_has_nothing_to_do() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(500, 20);
    fixture
        .tool("run")
        .run()
        .exits(0)
        .prints("workflow_runs: 500 rows seen = 490 in SLS + 10 held + 0 already + 0 gone")
        .prints("workflow_node_executions: 2,000 rows seen = 1,960 in SLS + 40 held")
        .prints("held, running: 40")
        .tells("0 differ");
    fixture.holds_every_finished_row_once();
    fixture.tool("run").run().exits(0).tells("nothing new to do");
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_nightly_run_accounts_for_itself_and_status_counts_every_row_once() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(300, 20);
    fixture.tool("run --tables workflow_runs").run().exits(0);
    let whole = "workflow_runs: 300 rows seen = 294 in SLS + 6 held + 0 gone";
    fixture.tool("status --tables workflow_runs").run().exits(0).prints(whole);
    // Nothing is new: the look-back of two days is read again, night after night.
    for _ in 0..2 {
        let night = fixture.tool("run --tables workflow_runs").run().exits(0);
        night
            .prints("29 rows seen + 6 held before = 0 in SLS + 6 held + 29 already + 0 gone")
            .prints("    0 batches, 0 B before compression");
        fixture.tool("status --tables workflow_runs").run().exits(0).prints(whole);
    }
    // A run that was held has finished, and one is new.
    fixture.database.psql(
        "UPDATE workflow_runs SET status = 'succeeded', finished_at = created_at \
         WHERE id = (SELECT id FROM workflow_runs WHERE status = 'running' \
                     ORDER BY created_at LIMIT 1); \
         INSERT INTO workflow_runs SELECT (r).* FROM (SELECT jsonb_populate_record(t, \
           jsonb_build_object('id', md5('new')::uuid)) AS r FROM workflow_runs t \
           WHERE finished_at IS NOT NULL ORDER BY created_at DESC LIMIT 1) n",
    );
    fixture
        .tool("run --tables workflow_runs")
        .run()
        .exits(0)
        .prints("30 rows seen + 6 held before = 2 in SLS + 5 held + 29 already + 0 gone");
    fixture
        .tool("status --tables workflow_runs")
        .run()
        .exits(0)
        .prints("workflow_runs: 301 rows seen = 296 in SLS + 5 held + 0 gone")
        .prints(
            "      300 rows seen = 294 in SLS + 5 held + 1 with other passes + 0 already + 0 gone",
        )
        .prints("      29 rows seen = 0 in SLS + 0 held + 29 already + 0 gone")
        .prints("      30 rows seen + 1 of other passes = 2 in SLS + 0 held + 29 already + 0 gone");
    // Pass by pass it adds up to the whole; and a row that has moved is one that one pass has
    // held and another has sent, as the ledger's entries say, too.
    let status = fixture.tool("status --tables workflow_runs --output json").run().exits(0);
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let runs = &status["tables"]["workflow_runs"];
    let passes = runs["passes"].as_array().unwrap();
    let sum = |name: &str| passes.iter().map(|pass| pass[name].as_i64().unwrap()).sum::<i64>();
    assert_eq!((passes.len(), sum("moved")), (4, 0));
    assert_eq!(sum("seen") - sum("already"), runs["seen"].as_i64().unwrap());
    assert_eq!((sum("live"), sum("held"), sum("gone")), (296, 5, 0));
    let moved = fixture.database.psql(
        "SELECT count(*) FROM sls_backfill.hold h JOIN sls_backfill.batch b ON b.id = h.batch_id \
         WHERE h.state = 'stored' AND h.pass_id <> b.pass_id",
    );
    assert_eq!(moved.trim(), passes[0]["moved"].to_string());
}

#[test]
fn small_ranges_in_every_order_read_no_row_twice() {
    for order in ["by-run", "walk"] {
        let fixture = Fixture::new("dify-1.12");
        fixture.fill(500, 20);
        fixture
            .tool(&format!(
                "run --key-order {order} --range-rows 60 --tables workflow_node_executions"
            ))
            .run()
            .exits(0)
            .prints("2,000 rows seen = 1,960 in SLS + 40 held + 0 already + 0 gone");
        let differing = "SELECT count(*) FROM sls_backfill.range WHERE rows_counted <> rows_seen";
        assert_eq!(fixture.database.psql(differing).trim(), "0");
        let ranges = fixture.database.psql("SELECT count(*) FROM sls_backfill.range");
        assert!(ranges.trim().parse::<u32>().unwrap() > 20, "{ranges}");
    }
}

#[test]
fn a_dry_run_writes_nothing_anywhere() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 5);
    fixture.database.psql("DROP SCHEMA sls_backfill CASCADE");
    let before = fixture.sls.stats();
    // Without any setting of SLS: it has no client with which it could write.
    crate::harness::tool::Tool::new(["run", "--dry-run"])
        .envs(fixture.database.env())
        .run()
        .exits(0)
        .prints("workflow_runs: 100 rows: 98 would be sent in ")
        .prints("workflow_node_executions: 400 rows: 392 would be sent in ")
        .prints("held, running: 8");
    assert_eq!(before, fixture.sls.stats());
    let schemas =
        fixture.database.psql("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'sls%'");
    assert_eq!(schemas.trim(), "0");
}

#[test]
fn a_dry_run_works_for_a_user_that_may_only_read() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(50, 5);
    let role = format!("reader_{}", fixture.database.name);
    fixture.database.psql(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'reader'; GRANT SELECT ON workflow_runs, \
         workflow_node_executions, workflow_node_execution_offload TO {role}"
    ));
    crate::harness::tool::Tool::new(["run", "--dry-run"])
        .envs(fixture.database.env())
        .env("DB_USERNAME", &role)
        .env("DB_PASSWORD", "reader")
        .run()
        .exits(0)
        .prints("workflow_runs: 50 rows: 49 would be sent");
    fixture.database.psql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
fn filters_choose_the_rows_and_a_later_run_takes_the_rest() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(300, 10);
    let tenant = fixture.database.psql("SELECT md5('t1')::uuid").trim().to_owned();
    let app = fixture.database.psql("SELECT md5('a1')::uuid").trim().to_owned();
    fixture.tool(&format!("run --tenant {tenant} --app {app}")).run().exits(0);
    let logs = fixture.sls.logs("workflow_node_execution");
    assert!(!logs.is_empty());
    assert!(logs.iter().all(|log| log.field("tenant_id") == tenant && log.field("app_id") == app));
    let day =
        fixture.database.psql("SELECT ((now() AT TIME ZONE 'UTC') - interval '3 days')::date");
    let day = day.trim();
    fixture.tool(&format!("run --tables workflow_runs --since {day}")).run().exits(0);
    let runs = fixture.stored("workflow_execution").len();
    assert!(runs < 290, "{runs}: not all of them are so young");
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn max_rows_stops_in_time_and_the_next_run_goes_on() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    fixture.tool("run --max-rows 123").run().exits(75).tells("--max-rows is reached");
    assert_eq!(fixture.stored("workflow_execution").len(), 123);
    assert_eq!(fixture.stored("workflow_node_execution").len(), 0);
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn held_rows_are_tried_again_when_their_reason_can_pass() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(50, 5);
    let node = fixture.finished("workflow_node_executions")[0].clone();
    let gone = fixture.database.psql("SELECT id FROM workflow_runs WHERE status = 'running'");
    fixture.database.psql(&format!(
        "INSERT INTO workflow_node_execution_offload (tenant_id, app_id, node_execution_id, type, \
         file_id) VALUES (gen_random_uuid(), gen_random_uuid(), '{node}', 'inputs', \
         gen_random_uuid()); \
         UPDATE workflow_node_executions SET finished_at = NULL \
         WHERE id = (SELECT id FROM workflow_node_executions WHERE status = 'succeeded' \
                     AND id <> '{node}' ORDER BY id LIMIT 1)"
    ));
    fixture
        .tool("run")
        .run()
        .exits(0)
        .prints("held, offloaded: 1")
        .prints("held, no finish time: 1")
        .prints("held, running: 4");
    // The payload comes back, the stuck ones end, one vanishes.
    fixture.database.psql(&format!(
        "DELETE FROM workflow_node_execution_offload; \
         UPDATE workflow_node_executions SET status = 'succeeded', \
         finished_at = created_at + interval '2 seconds' WHERE finished_at IS NULL; \
         DELETE FROM workflow_runs WHERE id = '{}'",
        gone.trim()
    ));
    fixture
        .tool("run")
        .run()
        .exits(0)
        .prints("19 rows seen + 1 held before = 0 in SLS + 1 held + 19 already + 0 gone")
        .prints("held, missing: 1")
        .prints("76 rows seen + 6 held before = 6 in SLS + 0 held + 76 already + 0 gone");
    fixture
        .tool("status")
        .run()
        .exits(0)
        .prints("= 49 in SLS + 1 held + 0 gone")
        .prints("200 in SLS + 0 held + 0 gone");
    fixture.holds_every_finished_row_once();
}

#[test]
fn another_conversion_than_the_open_passs_is_refused() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 5);
    fixture.tool("run --max-rows 10").run().exits(75);
    fixture
        .tool("run")
        .env("LOGSTORE_ENABLE_PUT_GRAPH_FIELD", "false")
        .run()
        .exits(3)
        .tells("graph is not written")
        .tells("hint: finish it with the settings it was begun with");
    fixture
        .tool("run --new-conversion")
        .env("LOGSTORE_ENABLE_PUT_GRAPH_FIELD", "false")
        .run()
        .exits(0)
        .tells("from now on graph is not written");
    fixture.holds_every_finished_row_once();
    let graphs: Vec<_> = fixture.sls.logs("workflow_execution");
    let with = graphs.iter().filter(|log| log.field("graph") != "{}").count();
    assert_eq!((with, graphs.len()), (10, 98));
    // A new pass may have a new conversion.
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn what_sls_holds_more_than_once_is_called_doubled_and_not_late() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 5);
    fixture.tool("run --batch-kib 64 --tables workflow_runs").run().exits(0);
    let logs = fixture.sls.logs("workflow_execution");
    let batch = logs[0].tags["__batch__"].as_str().unwrap().to_owned();
    fixture.sls.tamper("workflow_execution", &serde_json::json!({"double_batch": batch}));
    let outcome = fixture.tool("run --tables workflow_runs").run().exits(4);
    assert!(!outcome.stderr.contains("run again"), "{outcome}");
    outcome.tells("1 batches are in SLS more than once").tells("then `repair` shows the query");
}

#[test]
fn another_project_is_refused() {
    let fixture = Fixture::new("dify-1.12");
    fixture
        .tool("init")
        .env("ALIYUN_SLS_PROJECT_NAME", "another")
        .run()
        .exits(3)
        .tells("this ledger's rows went to SLS project dify-logs, not to another");
}

#[test]
fn what_sls_holds_otherwise_than_sent_ends_with_a_difference() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 5);
    fixture.tool("run --verify none").run().exits(0);
    // The book says another digest than what was sent: as good as a changed byte in SLS.
    fixture.database.psql(
        "UPDATE sls_backfill.batch SET digest = sha256('x') WHERE table_name = 'workflow_runs'",
    );
    fixture
        .tool("run")
        .run()
        .exits(4)
        .tells("are in SLS with another content than they were sent with")
        .tells("names the rows; ask who else writes into this logstore");
}
