//! Reading: which rows are looked at, when, and how often. Rows that come or vanish meanwhile, rows
//! that are too old, rows that wait, and rows that change between the look and the read.

use serde_json::json;

use crate::harness::database::Database;
use crate::harness::fixture::Fixture;
use crate::harness::simulator::Simulator;
use crate::harness::tool::Running;

mod coming_and_going;
mod expired;
mod judged_again;
mod waiting;

const RUNS: &str = "workflow_runs";
const NODES: &str = "workflow_node_executions";

/// The id of the `n`th row that a test inserts.
fn id(n: usize) -> String {
    format!("00000000-0000-7000-8000-{n:012}")
}

/// A time in Postgres's own words, so long before now.
fn ago(fixture: &Fixture, interval: &str) -> String {
    let sql = format!("SELECT now() AT TIME ZONE 'UTC' - interval '{interval}'");
    fixture.database.psql(&sql).trim().to_owned()
}

/// Inserts row `n`, which was created that long ago and finished a second later.
fn insert_old(fixture: &Fixture, table: &str, n: usize, age: &str) {
    let created_at = ago(fixture, age);
    let finished_at = ago(fixture, &format!("{age} - 1 second"));
    fixture
        .insert(table, json!({"id": id(n), "created_at": created_at, "finished_at": finished_at}));
}

/// Starts `run` and holds its `nth` request to store logs, until the simulator is told to release.
fn with_held_put(fixture: &Fixture, run: &str, nth: u32) -> Running {
    fixture.sls.order(&json!({"kind": "put", "nth": nth, "times": 1, "action": "hold"}));
    let running = fixture.tool(run).spawn();
    fixture.sls.wait_until("held", 1);
    running
}

/// A database and an SLS whose logstores keep logs for so many days.
fn with_ttl(days: u32) -> Fixture {
    let fixture =
        Fixture { database: Database::fresh().shape("dify-1.12"), sls: Simulator::start() };
    fixture.tool(&format!("init --ttl-days {days}")).run().exits(0);
    fixture.set_proven(true);
    fixture
}

fn set_ttl(fixture: &Fixture, days: u32) {
    for logstore in ["workflow_execution", "workflow_node_execution"] {
        let path = format!("/logstores/{logstore}");
        let mut settings: serde_json::Value =
            serde_json::from_str(&fixture.sls.call("GET", &path, &[], "")).unwrap();
        settings["ttl"] = json!(days);
        fixture.sls.call("PUT", &path, &[], &settings.to_string());
    }
}
