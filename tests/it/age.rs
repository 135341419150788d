//! How old logs may be: canaries, TTLs, and an SLS that takes no old logs.

use std::time::Duration;

use serde_json::json;

use crate::harness::database::Database;
use crate::harness::fixture::Fixture;
use crate::harness::poll;
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

/// A run that waits a second for its oldest rows, and whose signatures are over soon.
const IMPATIENT: &str = "run --batch-kib 64 --range-rows 50 --pull-wait-s 1 --signature-life-s 2 \
    --late-s 0 --visible-s 1";

#[test]
fn an_sls_that_says_stored_and_drops_old_logs_stops_every_run_until_a_person_decides() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(400, 300);
    fixture.sls.switch(&json!({"log_time": "drop"}));
    fixture
        .tool("run --batch-kib 64 --range-rows 50 --pull-wait-s 1")
        .run()
        .exits(4)
        .tells("SLS has acknowledged batch ")
        .tells("gives back 0 of them")
        .tells("nothing was deleted anywhere")
        .tells("hint: if SLS certainly does not keep them")
        .tells("--resend-unkept");
    assert_eq!(batches(&fixture), "stored|1", "one batch was tried, and no other");
    let sent = fixture.sls.stats()["put_ok"].clone();
    fixture.tool("run").run().exits(4).tells("SLS has acknowledged batch ");
    // A join is a run, too.
    fixture.tool("run --join").run().exits(4).tells("SLS has acknowledged batch ");
    // What is asked for must be as certain as with a batch that was never answered.
    fixture.tool("run --resend-unkept").run().exits(75).tells("can be decided from ");
    assert_eq!(fixture.sls.stats()["put_ok"], sent, "nothing more was sent");
    assert_eq!(batches(&fixture), "stored|1");
    // SLS still drops old logs; these are of now.
    let resend = format!("{IMPATIENT} --resend-unkept --log-time ingest --new-conversion");
    poll("the signature to be over", Duration::from_secs(20), || {
        let outcome = fixture.tool(&resend).run();
        match outcome.status.code() {
            Some(75) => None,
            Some(0) => Some(outcome),
            _ => panic!("it does not go on\n{outcome}"),
        }
    })
    .tells("are tried again");
    fixture.holds_every_finished_row_once();
    fixture.tool("run").run().exits(0);
    // It has given its rows back, and others have taken them: else they would be stray.
    fixture.tool("status").run().exits(0);
}

#[test]
fn who_repairs_a_batch_that_sls_does_not_give_back_has_decided_about_it() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 300);
    fixture.sls.switch(&json!({"log_time": "drop"}));
    fixture.tool(IMPATIENT).run().exits(4).tells("SLS has acknowledged batch ");
    fixture.sls.switch(&json!({"log_time": "accept"}));
    fixture.sent_an_hour_ago();
    fixture
        .tool("verify --level content --signature-life-s 1 --late-s 0 --visible-s 0")
        .run()
        .exits(4);
    fixture.tool("repair --execute").run().exits(0);
    // What was sent again is not there at once, and stops nobody.
    fixture.sls.switch(&json!({"receive_lag_ms": 1000}));
    fixture.tool(&IMPATIENT.replace("--pull-wait-s 1", "--pull-wait-s 30")).run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn an_acknowledged_batch_that_cannot_be_pulled_yet_stays_stored_and_is_not_sent_again() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(400, 300);
    fixture.sls.switch(&json!({"receive_lag_ms": 8000}));
    fixture.tool(IMPATIENT).run().exits(4).tells("SLS has acknowledged batch ");
    assert_eq!(batches(&fixture), "stored|1");
    fixture.tool(IMPATIENT).run().exits(4).tells("SLS has acknowledged batch ");
    assert_eq!(batches(&fixture), "stored|1", "no second one of that age");
    // What only was slow is found by whichever run comes later, even if it may be sent again.
    fixture.sls.switch(&json!({"receive_lag_ms": null}));
    poll("the batch to be found", Duration::from_secs(30), || {
        let outcome = fixture.tool(IMPATIENT).run();
        match outcome.status.code() {
            Some(4) => None,
            Some(0) => Some(()),
            _ => panic!("it does not go on\n{outcome}"),
        }
    });
    fixture.holds_every_finished_row_once();
    fixture.tool(IMPATIENT).arg("--resend-unkept").run().exits(0).tells("nothing new to do");
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_batch_of_which_sls_gives_back_a_part_is_not_sent_again_even_when_asked() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 300);
    fixture.sls.switch(&json!({"split_groups_ms": 15_000}));
    fixture.tool(IMPATIENT).run().exits(4).tells("SLS has acknowledged batch ");
    fixture.tool(IMPATIENT).run().exits(4).tells("SLS has acknowledged batch ");
    assert_eq!(batches(&fixture), "stored|1");
    fixture.sls.switch(&json!({"split_groups_ms": null}));
    // The other half comes before the run has ended: what is sent now is shown after it.
    let patient = IMPATIENT.replace("--pull-wait-s 1", "--pull-wait-s 30");
    poll("the signature to be over", Duration::from_secs(12), || {
        let outcome = fixture.tool(&format!("{patient} --resend-unkept")).run();
        (outcome.status.code() != Some(75)).then_some(outcome)
    })
    .exits(0)
    .tells("SLS holds a part of it");
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_given_up_batch_that_is_seen_later_lives_again_before_its_rows_are_tried() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 20);
    // Nothing of it is read back.
    fixture.tool("run --verify none --batch-kib 64 --max-rows 100").run().exits(75);
    fixture.database.psql(
        "WITH given_up AS (UPDATE sls_backfill.batch SET state = 'abandoned' WHERE id = \
           (SELECT id FROM sls_backfill.batch WHERE table_name = 'workflow_runs' LIMIT 1) \
           RETURNING id, pass_id), \
         its_rows AS (DELETE FROM sls_backfill.live_workflow_runs WHERE batch_id = \
           (SELECT id FROM given_up) RETURNING row_id) \
         INSERT INTO sls_backfill.hold (table_name, row_id, pass_id, reason, detail, created_at) \
         SELECT 'workflow_runs', row_id, pass_id, 'expired', '', now() AT TIME ZONE 'UTC' \
         FROM given_up, its_rows",
    );
    fixture.tool("run").run().exits(0).tells("is in SLS after all");
    fixture.holds_every_finished_row_once();
    // It has its rows again: else each would be stray.
    fixture.tool("status").run().exits(0);
    let state = "SELECT count(*) FROM sls_backfill.batch WHERE state <> 'proved'";
    assert_eq!(fixture.database.psql(state), "0");
}

#[test]
fn a_wait_for_the_oldest_rows_below_the_visibility_window_is_for_a_local_sls_only() {
    let fixture = Fixture::new("dify-1.12");
    let far = |arguments: &str| {
        let far =
            fixture.tool(arguments).env("ALIYUN_SLS_ENDPOINT", "cn-hangzhou.log.aliyuncs.com");
        far.deadline(Duration::from_secs(20)).run()
    };
    far("run --pull-wait-s 59").exits(2).tells("--pull-wait-s below 60").tells("local SLS only");
    far("run --pull-wait-s 60 --visible-s 61").exits(2).tells("--pull-wait-s below 61");
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
