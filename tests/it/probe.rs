//! The probe of idempotent writes, and the doctor's look at everything.

use serde_json::{Value, json};

use crate::harness::database::Database;
use crate::harness::http;
use crate::harness::simulator::{PROJECT, Simulator};
use crate::harness::world::World;

const PROBED: &str = "SELECT seqid_proven FROM sls_backfill.ledger";

/// A world whose ledger knows nothing of numbers.
fn unproven() -> World {
    let world = World::new("dify-1.12");
    world.fill(50, 5);
    world.database.psql(
        "UPDATE sls_backfill.ledger SET seqid_proven = NULL, seqid_probed_at = NULL, \
         seqid_of = NULL",
    );
    world
}

#[track_caller]
fn the_scratch_logstore_is_gone(world: &World) {
    let path = format!("/_sim/logs/{PROJECT}/dify-sls-backfill-probe");
    let (status, body) = http::request(world.sls.port, "GET", &path, "");
    assert_eq!(status, 404, "{body}");
}

fn checks(world: &World, command: &str, code: i32) -> Vec<Value> {
    let outcome = world.tool(command).arg("--output=json").run().exits(code);
    let report: Value = serde_json::from_str(outcome.stdout.trim()).unwrap();
    assert_eq!(report["fit"], code == 0, "{report}");
    report["checks"].as_array().unwrap().clone()
}

#[track_caller]
fn state_of(checks: &[Value], name: &str) -> String {
    let check = checks.iter().find(|check| check["name"] == name);
    check.unwrap_or_else(|| panic!("no {name} in {checks:?}"))["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_run_tries_out_numbers_once_before_it_sends() {
    let world = unproven();
    world.tool("run").run().exits(0).tells("trying out on logstore dify-sls-backfill-probe");
    assert_eq!(world.database.psql(PROBED), "t");
    the_scratch_logstore_is_gone(&world);
    let again = world.tool("run").run().exits(0);
    assert!(!again.stderr.contains("trying out"), "{again}");
    world.holds_every_finished_row_once();
}

#[test]
fn numbers_that_sls_ignores_are_not_proven() {
    let world = unproven();
    world.sls.switch(&json!({"seqid": "ignored"}));
    world.tool("run").run().exits(0).tells("not proven to refuse a number");
    assert_eq!(world.database.psql(PROBED), "f");
    the_scratch_logstore_is_gone(&world);
}

#[test]
fn a_run_that_may_not_probe_leaves_it_open() {
    let world = unproven();
    world.tool("run --no-probe").run().exits(0).tells("not proven to refuse a number");
    assert_eq!(world.database.psql(PROBED), "");
}

#[test]
fn a_run_without_the_right_to_make_a_logstore_goes_on_unproven() {
    let world = unproven();
    let refuse = json!({"refuse": {"status": 403, "code": "Unauthorized", "message": "denied"}});
    // It looks for two indexes and how long logs are kept, makes two groups and lists them; then
    // it makes the logstore.
    world.sls.order(&json!({"kind": "admin", "nth": 9, "action": refuse}));
    world.tool("run").run().exits(0).tells("dify-sls-backfill-probe cannot be made: Unauthorized");
    assert_eq!(world.database.psql(PROBED), "");
    world.holds_every_finished_row_once();
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
        let world = unproven();
        world.sls.order(&json!({"kind": "put", "nth": nth, "action": action}));
        let probed = world.tool("doctor --probe").run().exits(0);
        probed.prints("proven: SLS refuses a number that it has stored");
        assert_eq!(world.database.psql(PROBED), "t", "{nth} {action}");
    }
}

#[test]
fn the_doctor_finds_a_fit_world_fit_and_writes_nothing() {
    let world = unproven();
    let settings = world.sls.call("GET", "/logstores/workflow_execution", &[], "");
    let shorter = settings.replace("\"ttl\":3650", "\"ttl\":365");
    assert_ne!(settings, shorter);
    world.sls.call("PUT", "/logstores/workflow_execution", &[], &shorter);
    let dump = "SELECT ledger::text FROM sls_backfill.ledger";
    let before = world.database.psql(dump);
    let found = checks(&world, "doctor", 0);
    assert!(found.iter().all(|check| check["state"] != "fail"), "{found:?}");
    assert_eq!(state_of(&found, "table workflow_runs"), "ok");
    assert_eq!(state_of(&found, "logstore workflow_execution"), "warn", "365 days are few");
    assert_eq!(world.database.psql(dump), before);
    world.tool("doctor").run().exits(0).prints("everything is fit");
}

#[test]
fn the_doctor_says_what_to_type_where_nothing_is_made_yet() {
    let world = World { database: Database::fresh().shape("dify-1.12"), sls: Simulator::start() };
    world
        .tool("doctor")
        .run()
        .exits(3)
        .prints("FAIL")
        .prints("there is no project dify-logs")
        .prints("hint: `dify-sls-backfill init` makes");
    assert_eq!(world.database.psql("SELECT to_regnamespace('sls_backfill') IS NULL"), "t");
    let found = checks(&world, "doctor --probe", 3);
    assert_eq!(state_of(&found, "seqid"), "warn", "it tries nothing where something has failed");
    assert_eq!(world.database.psql("SELECT to_regnamespace('sls_backfill') IS NULL"), "t");
}

#[test]
fn the_doctor_finds_what_is_wrong() {
    let world = unproven();
    world.sls.switch(&json!({"clock_offset_s": 172_800}));
    assert_eq!(state_of(&checks(&world, "doctor", 0), "clocks"), "warn");
    world.sls.switch(&json!({"clock_offset_s": 0}));
    world.database.psql("ALTER TABLE workflow_runs RENAME COLUMN status TO state");
    assert_eq!(state_of(&checks(&world, "doctor", 3), "table workflow_runs"), "fail");
    world.database.psql("ALTER TABLE workflow_runs RENAME COLUMN state TO status");
    world.tool("run").run().exits(0);
    let copy = world.database.copy();
    let of_copy = World { database: copy, sls: Simulator::start() };
    let found = of_copy.tool("doctor").envs(world.sls.env()).run().exits(3);
    found.prints("it is in another database").prints("`dify-sls-backfill audit`");
    world.database.psql("DROP SCHEMA sls_backfill CASCADE");
    let found = checks(&world, "doctor", 3);
    assert_eq!(state_of(&found, "groups workflow_execution"), "fail");
    let wrong = world.tool("doctor").env("DB_PASSWORD", "wrong").env("ALIYUN_SLS_ENDPOINT", "");
    wrong.run().exits(3).prints("password").prints("ALIYUN_SLS_ENDPOINT is not set");
}
