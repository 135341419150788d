//! The probe of idempotent writes, and the doctor's look at everything.

use serde_json::{Value, json};

use crate::harness::database::Database;
use crate::harness::fixture::Fixture;
use crate::harness::http;
use crate::harness::simulator::{PROJECT, Simulator};

const PROBED: &str = "SELECT seqid_proven FROM sls_backfill.ledger";

/// A world whose ledger knows nothing of numbers.
fn unproven() -> Fixture {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(50, 5);
    fixture.database.psql(
        "UPDATE sls_backfill.ledger SET seqid_proven = NULL, seqid_probed_at = NULL, \
         seqid_of = NULL",
    );
    fixture
}

#[track_caller]
fn the_scratch_logstore_is_gone(fixture: &Fixture) {
    let path = format!("/_sim/logs/{PROJECT}/dify-sls-backfill-probe");
    let (status, body) = http::request(fixture.sls.port, "GET", &path, "");
    assert_eq!(status, 404, "{body}");
}

fn checks(fixture: &Fixture, command: &str, code: i32) -> Vec<Value> {
    let outcome = fixture.tool(command).arg("--output=json").run().exits(code);
    let report: Value = serde_json::from_str(outcome.stdout.trim()).unwrap();
    assert_eq!(report["ready"], code == 0, "{report}");
    report["checks"].as_array().unwrap().clone()
}

#[track_caller]
fn state_of(checks: &[Value], name: &str) -> String {
    let check = checks.iter().find(|check| check["name"] == name);
    check.unwrap_or_else(|| panic!("no {name} in {checks:?}"))["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_run_tries_out_numbers_once_before_it_sends() {
    let fixture = unproven();
    fixture.tool("run").run().exits(0).tells("testing on logstore dify-sls-backfill-probe");
    assert_eq!(fixture.database.psql(PROBED), "t");
    the_scratch_logstore_is_gone(&fixture);
    let again = fixture.tool("run").run().exits(0);
    assert!(!again.stderr.contains("testing on logstore"), "{again}");
    fixture.holds_every_finished_row_once();
}

#[test]
fn numbers_that_sls_ignores_are_not_proven() {
    let fixture = unproven();
    fixture.sls.switch(&json!({"seqid": "ignored"}));
    fixture.tool("run").run().exits(0).tells("not proven to refuse a sequence number");
    assert_eq!(fixture.database.psql(PROBED), "f");
    the_scratch_logstore_is_gone(&fixture);
}

#[test]
fn a_run_that_may_not_probe_leaves_it_open() {
    let fixture = unproven();
    fixture.tool("run --no-probe").run().exits(0).tells("not proven to refuse a sequence number");
    assert_eq!(fixture.database.psql(PROBED), "");
}

#[test]
fn a_run_without_the_right_to_make_a_logstore_goes_on_unproven() {
    let fixture = unproven();
    let refuse = json!({"refuse": {"status": 403, "code": "Unauthorized", "message": "denied"}});
    // It looks for two indexes and how long logs are kept, makes two groups and lists them; then
    // it makes the logstore.
    fixture.sls.order(&json!({"kind": "admin", "nth": 9, "action": refuse}));
    fixture
        .tool("run")
        .run()
        .exits(0)
        .tells("dify-sls-backfill-probe cannot be made: Unauthorized");
    assert_eq!(fixture.database.psql(PROBED), "");
    fixture.holds_every_finished_row_once();
}

#[test]
fn lost_answers_and_a_logstore_that_is_not_ready_do_not_mislead_the_probe() {
    let absent = json!({"refuse": {"status": 404, "code": "LogStoreNotExist"}});
    let (seldom, often) = (json!("cut_after"), json!("cut_before"));
    for (nth, action) in [
        (1, &seldom),
        (2, &seldom),
        (3, &seldom),
        (1, &often),
        (2, &often),
        (3, &often),
        (1, &absent),
    ] {
        let fixture = unproven();
        fixture.sls.order(&json!({"kind": "put", "nth": nth, "action": action}));
        let probed = fixture.tool("doctor --probe").run().exits(0);
        probed.prints("proven: SLS refuses a sequence number that it has stored");
        assert_eq!(fixture.database.psql(PROBED), "t", "{nth} {action}");
    }
}

#[test]
fn the_doctor_finds_a_fit_world_fit_and_writes_nothing() {
    let fixture = unproven();
    let settings = fixture.sls.call("GET", "/logstores/workflow_execution", &[], "");
    let shorter = settings.replace("\"ttl\":3650", "\"ttl\":365");
    assert_ne!(settings, shorter);
    fixture.sls.call("PUT", "/logstores/workflow_execution", &[], &shorter);
    let dump = "SELECT ledger::text FROM sls_backfill.ledger";
    let before = fixture.database.psql(dump);
    let found = checks(&fixture, "doctor", 0);
    assert!(found.iter().all(|check| check["state"] != "fail"), "{found:?}");
    assert_eq!(state_of(&found, "table workflow_runs"), "ok");
    assert_eq!(state_of(&found, "logstore workflow_execution"), "warn", "365 days are few");
    assert_eq!(fixture.database.psql(dump), before);
    fixture.tool("doctor").run().exits(0).prints("everything is ready");
}

#[test]
fn the_doctor_says_what_to_type_where_nothing_is_made_yet() {
    let fixture = Fixture { database: Database::of_shape("dify-1.12"), sls: Simulator::start() };
    fixture
        .tool("doctor")
        .run()
        .exits(3)
        .prints("FAIL")
        .prints("there is no project dify-logs")
        .prints("hint: `dify-sls-backfill init` creates");
    assert_eq!(fixture.database.psql("SELECT to_regnamespace('sls_backfill') IS NULL"), "t");
    let found = checks(&fixture, "doctor --probe", 3);
    assert_eq!(state_of(&found, "seqid"), "warn", "it tries nothing where something has failed");
    assert_eq!(fixture.database.psql("SELECT to_regnamespace('sls_backfill') IS NULL"), "t");
}

#[test]
fn the_doctor_finds_what_is_wrong() {
    let fixture = unproven();
    fixture.sls.switch(&json!({"clock_offset_s": 172_800}));
    assert_eq!(state_of(&checks(&fixture, "doctor", 0), "clocks"), "warn");
    fixture.sls.switch(&json!({"clock_offset_s": 0}));
    fixture.database.psql("ALTER TABLE workflow_runs RENAME COLUMN status TO state");
    assert_eq!(state_of(&checks(&fixture, "doctor", 3), "table workflow_runs"), "fail");
    fixture.database.psql("ALTER TABLE workflow_runs RENAME COLUMN state TO status");
    fixture.tool("run").run().exits(0);
    let copy = fixture.database.copy();
    let of_copy = Fixture { database: copy, sls: Simulator::start() };
    let found = of_copy.tool("doctor").envs(fixture.sls.env()).run().exits(3);
    found.prints("it is in another database").prints("`dify-sls-backfill audit`");
    fixture.database.psql("DROP SCHEMA sls_backfill CASCADE");
    let found = checks(&fixture, "doctor", 3);
    assert_eq!(state_of(&found, "groups workflow_execution"), "fail");
    let wrong = fixture.tool("doctor").env("DB_PASSWORD", "wrong").env("ALIYUN_SLS_ENDPOINT", "");
    wrong.run().exits(3).prints("password").prints("ALIYUN_SLS_ENDPOINT is not set");
}
