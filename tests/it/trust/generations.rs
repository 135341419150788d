//! A logstore that was deleted and made again, or stands elsewhere, holds nothing of what the one
//! before held.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::faults::{SHORT, fault};
use crate::harness::database::Database;
use crate::harness::fixture::Fixture;
use crate::harness::simulator::Simulator;
use crate::harness::tool::Tool;
use crate::trust::{AUDIT, RUNS, account, batches};

/// Deletes the logstore of the runs and makes it again, a second later at the earliest: SLS tells
/// in seconds when a logstore was made.
pub(crate) fn make_anew(fixture: &Fixture, ttl_days: u32) {
    let made = creation(fixture);
    fixture.delete_logstore(RUNS);
    loop {
        fixture.tool(&format!("init --ttl-days {ttl_days}")).run().exits(0);
        if creation(fixture) > made {
            return;
        }
        fixture.delete_logstore(RUNS);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// When the logstore of the runs was made, Unix seconds.
fn creation(fixture: &Fixture) -> i64 {
    let logstore = fixture.sls.call("GET", &format!("/logstores/{RUNS}"), &[], "");
    let logstore: Value = serde_json::from_str(&logstore).unwrap();
    logstore["createTime"].as_i64().unwrap()
}

#[test]
fn a_logstore_that_was_made_anew_is_not_believed_to_hold_what_was_sent() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    fixture.tool(SHORT).run().exits(0);
    let rows = fixture.finished("workflow_runs").len();
    make_anew(&fixture, 3650);
    fixture.tool("doctor").run().exits(3).prints("was deleted and made again");
    for _ in 0..2 {
        fixture
            .tool(SHORT)
            .run()
            .exits(3)
            .tells("logstore workflow_execution was deleted and made again")
            .tells("`dify-sls-backfill audit`");
    }
    assert_eq!(account(&fixture, "workflow_runs")["live"], 0, "nothing of it counts any more");
    fixture.tool(AUDIT).run().exits(4).prints(&format!("{rows} rows")).tells("--resend-lost");
    assert_eq!(account(&fixture, "workflow_runs")["lost"], rows);
    assert_eq!(account(&fixture, "workflow_node_executions")["lost"], 0);
    fixture.tool("status").run().exits(0).prints(&format!("{rows} lost"));
    // Never again but by an explicit word, and until then no run is done and equal.
    fixture.tool(SHORT).run().exits(4).tells("--resend-lost");
    assert_eq!(fixture.stored(RUNS), [""; 0]);
    fixture
        .tool(SHORT)
        .arg("--resend-lost")
        .run()
        .exits(0)
        // What an earlier logstore kept proves nothing of this one.
        .tells("workflow_runs: rows of ");
    fixture.holds_every_finished_row_once();
    assert_eq!(account(&fixture, "workflow_runs")["lost"], 0);
    fixture.tool(SHORT).run().exits(0).tells("nothing new to do");
    fixture.tool(AUDIT).run().exits(0);
    fixture.tool("doctor").run().exits(0);
}

#[test]
fn a_batch_in_the_air_goes_into_the_logstore_that_was_made_anew_once() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    fixture.sls.switch(&json!({"signature_life_s": 3}));
    fixture.sls.order(&fault("put", 2, 1_000_000, json!("cut_before")));
    let run = format!("{SHORT} --workers 1 --tables workflow_runs");
    let running = fixture.tool(&run).spawn();
    let open = "SELECT count(*) > 0 FROM sls_backfill.batch WHERE unknowns > 0 OR attempts > 1 \
                OR state = 'intent' AND number > 1";
    fixture.database.wait_until(open, "t");
    running.kill();
    fixture.sls.forget_faults();
    make_anew(&fixture, 3650);
    fixture.tool(SHORT).run().exits(3);
    fixture.tool(AUDIT).run().exits(4);
    let run = format!("{SHORT} --resend-lost");
    let deadline = Instant::now() + Duration::from_secs(60);
    while fixture.tool(&run).run().status.code() != Some(0) {
        assert!(Instant::now() < deadline, "it does not end well");
    }
    fixture.holds_every_finished_row_once();
    assert!(batches(&fixture).contains("proved"), "{}", batches(&fixture));
    assert!(!batches(&fixture).contains("intent"), "{}", batches(&fixture));
}

#[test]
fn two_creations_within_one_second_are_told_apart_by_what_can_be_read() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 10);
    fixture.tool(SHORT).run().exits(0);
    make_anew(&fixture, 3650);
    fixture.database.psql(&format!(
        "UPDATE sls_backfill.generation SET created_at_s = {} WHERE logstore = '{RUNS}'",
        creation(&fixture)
    ));
    fixture.tool(SHORT).run().exits(3).tells("`dify-sls-backfill audit`");
    fixture.tool(AUDIT).run().exits(4).tells("--resend-lost");
    fixture.tool(SHORT).run().exits(4);
    assert_eq!(fixture.stored(RUNS), [""; 0]);
    fixture.tool(SHORT).arg("--resend-lost").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn what_the_ttl_explains_is_not_lost() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    fixture.tool(SHORT).run().exits(0);
    // As if it had been sent five years ago into a logstore that keeps logs for a month.
    fixture.database.psql(
        "UPDATE sls_backfill.batch SET signed_at = signed_at - interval '5 years', \
         stored_at = stored_at - interval '5 years' WHERE table_name = 'workflow_runs'; \
         UPDATE sls_backfill.generation SET ttl_days = 30",
    );
    make_anew(&fixture, 3650);
    fixture.tool(SHORT).run().exits(3);
    fixture.tool(AUDIT).run().exits(0);
    let account = account(&fixture, "workflow_runs");
    assert_eq!((&account["lost"], &account["live"]), (&json!(0), &json!(0)), "{account}");
    assert_eq!(account["earlier"], 196, "{account}");
    let outcome = fixture
        .tool(SHORT)
        .run()
        .exits(0)
        .tells("workflow_runs: read back and compared: 0 batches");
    outcome.prints("196 of an earlier logstore");
    assert_eq!(fixture.stored(RUNS), [""; 0]);
}

#[test]
fn a_lost_batch_that_is_there_after_all_lives_again() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 10);
    fixture.tool(SHORT).run().exits(0);
    fixture.database.psql("UPDATE sls_backfill.batch SET state = 'lost', proved_at = NULL");
    fixture.tool(SHORT).run().exits(4);
    fixture.tool(AUDIT).run().exits(0);
    assert!(!batches(&fixture).contains("lost"), "{}", batches(&fixture));
    fixture.tool(SHORT).run().exits(0).tells("nothing new to do");
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_new_logstore_into_which_nothing_was_sent_needs_no_audit() {
    let fixture = Fixture::new("dify-1.12");
    fixture.tool(SHORT).run().exits(0);
    make_anew(&fixture, 3650);
    fixture.fill(100, 1);
    fixture.tool(SHORT).run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn another_sls_with_the_same_project_name_is_refused_by_its_endpoint() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 10);
    fixture.tool(SHORT).run().exits(0);
    let real = Fixture { database: Database::fresh().shape("dify-1.12"), sls: Simulator::start() };
    let on_real = |command: &str| {
        Tool::new(command.split(' ')).envs(fixture.database.env()).envs(real.sls.env())
    };
    let is_refused = |command: &str| {
        on_real(command)
            .run()
            .exits(3)
            .tells(&format!("not to 127.0.0.1:{}", real.sls.port))
            .tells("--ledger-url")
            .tells("`dify-sls-backfill audit`");
    };
    is_refused("init --ttl-days 3650");
    real.tool("init --ttl-days 3650").run().exits(0);
    is_refused(SHORT);
    on_real("doctor").run().exits(3).prints(&format!("not to 127.0.0.1:{}", real.sls.port));
    assert_eq!(real.sls.stats()["put_ok"], 0);
    // If it has really moved, an audit says what the ledger may believe now.
    on_real(AUDIT).run().exits(4).tells("--resend-lost");
    on_real(SHORT).run().exits(4);
    on_real(SHORT).arg("--resend-lost").run().exits(0);
    let moved = Fixture { database: fixture.database, sls: real.sls };
    moved.holds_every_finished_row_once();
    Tool::new(SHORT.split(' ')).envs(moved.database.env()).envs(fixture.sls.env()).run().exits(3);
}

#[test]
fn what_a_missing_logstore_held_is_lost_with_it() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 10);
    fixture.tool(SHORT).run().exits(0);
    fixture.delete_logstore(RUNS);
    fixture.tool(AUDIT).run().exits(4).tells("--resend-lost");
    assert_eq!(account(&fixture, "workflow_runs")["lost"], 98);
    fixture.tool("init --ttl-days 3650").run().exits(0);
    fixture.tool(SHORT).arg("--resend-lost").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn an_adopted_batch_that_is_lost_can_be_sent_again_and_the_account_adds_up() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    fixture.tool(SHORT).arg("--max-rows=100").run().exits(75);
    fixture.database.psql("DROP SCHEMA sls_backfill CASCADE");
    fixture.tool(AUDIT).run().exits(0);
    make_anew(&fixture, 3650);
    fixture.tool(SHORT).run().exits(3);
    fixture.tool(AUDIT).run().exits(4);
    fixture.tool("status").run().exits(0).prints("100 lost");
    fixture.tool(SHORT).arg("--resend-lost").run().exits(0);
    fixture.holds_every_finished_row_once();
}
