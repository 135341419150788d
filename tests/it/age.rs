//! How old logs may be: canaries, TTLs, and an SLS that takes no old logs.

use serde_json::json;

use crate::harness::database::Database;
use crate::harness::fixture::Fixture;
use crate::harness::simulator::Simulator;

/// How many batches of the ledger are in each state.
fn batches(fixture: &Fixture) -> String {
    let sql = "SELECT state, count(*) FROM sls_backfill.batch GROUP BY state ORDER BY state";
    fixture.database.psql(sql).trim().replace('\n', " ")
}

#[test]
fn the_oldest_batch_is_pulled_back_and_found_before_others_go() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(400, 20);
    fixture
        .tool("run -v --batch-kib 64 --range-rows 50")
        .run()
        .exits(0)
        .tells("workflow_runs: rows of ")
        .tells("go first; others of that age follow when these are proved")
        .tells("pulled back, counted and found after")
        .tells("workflow_node_executions: SLS keeps rows of ");
    fixture.holds_every_finished_row_once();
    let proved = "SELECT count(*) FROM sls_backfill.proved_age a JOIN sls_backfill.batch b \
                  ON b.id = a.batch_id AND b.state = 'proved' \
                  AND a.since = date_trunc('second', b.finished_first)";
    assert_eq!(fixture.database.psql(proved).trim(), "2");
    // What is proved stays proved: a young row needs no canary.
    fixture.database.psql(
        "UPDATE workflow_runs SET status = 'succeeded', finished_at = created_at \
         WHERE status = 'running'",
    );
    let later = fixture.tool("run").run().exits(0);
    assert!(!later.stderr.contains("go first"), "{later}");
    fixture.holds_every_finished_row_once();
}

#[test]
fn logs_that_are_out_of_range_stop_the_run_before_a_second_batch_goes() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(400, 300);
    fixture.sls.switch(&json!({"log_time": "refuse"}));
    fixture
        .tool("run --batch-kib 64 --range-rows 50")
        .run()
        .exits(70)
        .tells(
            "SLS takes no log as old as these: PostBodyInvalid: The post data time is out of range",
        )
        .tells("are held `expired`; nothing was deleted anywhere")
        .tells("dify-sls-backfill run --log-time ingest --new-conversion");
    assert_eq!(batches(&fixture), "abandoned|1", "one batch was tried, and no other");
    fixture.sls.switch(&json!({"log_time": null}));
    // Who has mended the cause runs again.
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn the_time_of_sending_may_be_the_log_time() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 300);
    fixture.tool("run --max-rows 20 --tables workflow_runs").run().exits(75);
    fixture
        .tool("run --log-time ingest")
        .run()
        .exits(3)
        .tells("the log time is the time of sending");
    fixture.tool("run --log-time ingest --new-conversion").run().exits(0);
    fixture.holds_every_finished_row_once();
    let logs = fixture.sls.logs("workflow_execution");
    let finished = logs.iter().filter(|log| {
        let at = log.field("finished_at");
        let unix =
            fixture.database.psql(&format!("SELECT floor(extract(epoch FROM '{at}'::timestamp))"));
        unix.trim() == log.time.to_string()
    });
    assert_eq!((finished.count(), logs.len()), (20, 196));
}

#[test]
fn an_sls_that_says_stored_and_drops_old_logs_is_found_out_by_the_first_batch() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(400, 300);
    fixture.sls.switch(&json!({"log_time": "drop"}));
    fixture
        .tool("run --batch-kib 64 --range-rows 50 --pull-wait-s 1")
        .run()
        .exits(4)
        .tells("SLS said that it has stored batch ")
        .tells("gives back 0 of them as they were sent: it does not keep logs as old as these")
        .tells("are held `expired`; nothing was deleted anywhere")
        .tells("dify-sls-backfill run --log-time ingest --new-conversion");
    assert_eq!(batches(&fixture), "abandoned|1", "one batch was tried, and no other");
    // SLS still drops old logs; these are of now.
    fixture.tool("run --log-time ingest --new-conversion").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn rows_beyond_the_ttl_are_told_first_and_held() {
    let database = Database::of_shape("dify-1.12");
    let fixture = Fixture { database, sls: Simulator::start() };
    fixture.tool("init --ttl-days 365").run().exits(0);
    fixture.fill(300, 600);
    let held = fixture
        .tool("run")
        .run()
        .exits(0)
        .tells("workflow_execution keeps logs for 365 days, and workflow_runs has about ")
        .tells("workflow_node_execution keeps logs for 365 days, and workflow_node_executions")
        .tells(": these are held `expired`")
        .tells("hint: raise the TTL of workflow_execution in SLS's console")
        .prints("held, expired: ");
    let (told, begun) = (held.stderr.find("keeps logs"), held.stderr.find("pass 1"));
    assert!(told < begun, "it is told before the first row goes\n{held}");
    let older = "SELECT count(*) FROM workflow_runs WHERE status <> 'running' \
                 AND finished_at < (now() AT TIME ZONE 'UTC') - interval '365 days'";
    let older = fixture.database.psql(older);
    held.prints(&format!("held, expired: {} (", older.trim()));
    fixture
        .tool("run --beyond-ttl")
        .run()
        .exits(0)
        .tells("they are sent (--beyond-ttl), but SLS may drop them");
    fixture.holds_every_finished_row_once();
}
