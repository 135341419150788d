//! `verify --level parity`: each kind of planted difference is found, what was purged is no
//! difference, and what upstream does by itself is named as its own.

use serde_json::{Value, json};

use crate::harness::fixture::Fixture;
use crate::harness::tool::Outcome;
use crate::verify::{run_id, sent};

const RUNS: &str = "workflow_execution";
const NODES: &str = "workflow_node_execution";

/// A history of 60 runs of 20 days and their nodes, sent.
fn both_sent() -> Fixture {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(60, 20);
    fixture.tool("run").run().exits(0);
    fixture
}

/// What parity says; every run is looked at one by one unless `arguments` say otherwise.
fn parity(fixture: &Fixture, arguments: &str) -> (Outcome, Value) {
    let all = format!("verify --output json --level parity {arguments}");
    let outcome = fixture.tool(all.trim_end()).run();
    let json = serde_json::from_str(&outcome.stdout).unwrap_or(Value::Null);
    (outcome, json)
}

/// The questions that differ, each with the readers that ask it.
fn differing(json: &Value) -> Vec<String> {
    let list = json["differences"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut told: Vec<_> = list
        .iter()
        .map(|one| format!("{} {}", text(&one["readers"]), text(&one["question"])))
        .collect();
    told.sort();
    told.dedup();
    told
}

#[track_caller]
fn finds(fixture: &Fixture, arguments: &str, wanted: &[&str]) -> Value {
    let (outcome, json) = parity(fixture, arguments);
    let outcome = outcome.exits(4).tells("Dify would show");
    let told = differing(&json);
    for wanted in wanted {
        assert!(told.iter().any(|told| told == wanted), "no {wanted} in {told:?}\n{outcome}");
    }
    json
}

const ONLY_RUNS: &str = "--tables workflow_runs --runs-per-app 1000";

#[test]
fn a_clean_history_shows_the_same_and_fits_the_terminal() {
    let fixture = both_sent();
    let outcome = fixture.tool("verify --level parity --runs-per-app 2").run().exits(0);
    outcome.tells("Dify shows the same").prints("15 apps");
    let (outcome, json) = parity(&fixture, "--runs-per-app 2");
    outcome.exits(0);
    assert_eq!(
        (json["verdict"].as_str(), json["schema_version"].as_u64()),
        (Some("equal"), Some(1))
    );
    let answers: u64 = json["answers"].as_str().unwrap().parse().unwrap();
    assert!(answers > 1000, "{answers}");
    let app = fixture.database.psql("SELECT min(app_id::text) FROM workflow_runs");
    let (outcome, json) = parity(&fixture, &format!("--app {}", app.trim()));
    outcome.exits(0);
    assert_eq!(json["apps"], "3");
}

#[test]
fn a_run_that_is_missing_is_found() {
    let fixture = sent();
    let id = run_id(&fixture, 3);
    fixture.sls.tamper(RUNS, &json!({"drop_log": {"id": id}}));
    let json = finds(
        &fixture,
        ONLY_RUNS,
        &[
            "shipped counts_by_status",
            "newest counts_by_status",
            "shipped daily_runs",
            "newest daily_runs",
            "shipped token_cost",
            "shipped run_by_id",
            "newest run_by_id",
            "newest run_list",
        ],
    );
    let by_id = json["differences"].as_array().unwrap().iter();
    let mut by_id = by_id.filter(|one| one["question"] == "run_by_id");
    assert!(by_id.all(|one| one["place"] == *id && one["sls"].is_null()));
    let outcome = fixture.tool("verify --level parity --tables workflow_runs").run().exits(4);
    let widest = outcome.stdout.lines().map(|line| line.chars().count()).max();
    assert!(widest.is_some_and(|widest| widest <= 80), "{outcome}");
    outcome.prints("daily runs");
}

#[test]
fn tokens_that_count_twice_are_found_by_the_shipped_chart_alone() {
    let fixture = sent();
    fixture.sls.tamper(RUNS, &json!({"double_log": {"id": run_id(&fixture, 3)}}));
    let json = finds(&fixture, ONLY_RUNS, &["shipped token_cost"]);
    assert_eq!(differing(&json), ["shipped token_cost"]);
}

#[test]
fn a_day_that_is_shifted_by_the_logs_time_is_found_by_the_shipped_charts_alone() {
    let fixture = sent();
    let id = run_id(&fixture, 40);
    let logs = fixture.sls.logs(RUNS);
    let time = logs.iter().find(|log| log.field("id") == id).unwrap().time - 2 * 86_400;
    fixture.sls.tamper(RUNS, &json!({"set_time": {"log": {"id": id}, "time": time}}));
    let json = finds(&fixture, ONLY_RUNS, &["shipped daily_runs", "shipped token_cost"]);
    assert!(differing(&json).iter().all(|one| one.starts_with("shipped")), "{json}");
}

#[test]
fn a_status_that_is_wrong_is_found() {
    let fixture = sent();
    let id = run_id(&fixture, 3);
    let status = json!({"log": {"id": id}, "field": "status", "value": "stopped"});
    fixture.sls.tamper(RUNS, &json!({"set_field": status}));
    let json = finds(
        &fixture,
        ONLY_RUNS,
        &["shipped counts_by_status", "newest counts_by_status", "shipped run_by_id"],
    );
    let mut list = json["differences"].as_array().unwrap().iter();
    assert!(list.any(|one| one["what"] == "status" && one["sls"] == "stopped"), "{json}");
}

#[test]
fn a_node_trace_that_is_collapsed_is_found() {
    let fixture = both_sent();
    let run = fixture.database.psql(
        "SELECT workflow_run_id FROM workflow_node_executions WHERE status = 'succeeded' \
         GROUP BY 1 HAVING count(*) = 4 ORDER BY 1 LIMIT 1",
    );
    let run = run.trim();
    let nodes = fixture.sls.logs(NODES);
    for log in nodes.iter().filter(|log| log.field("workflow_run_id") == run) {
        let id = log.field("id");
        let change = json!({"log": {"id": id}, "field": "node_execution_id", "value": ""});
        fixture.sls.tamper(NODES, &json!({"set_field": change}));
    }
    let arguments = "--tables workflow_node_executions --runs-per-app 1000";
    let json = finds(&fixture, arguments, &["shipped node_trace"]);
    let list = json["differences"].as_array().unwrap();
    let lost = list.iter().filter(|one| one["sls"].is_null() && one["place"] == run);
    assert_eq!(lost.count(), 3, "four nodes are shown as one: {json}");
}

#[test]
fn what_was_purged_is_no_difference_and_what_then_is_lost_is_one() {
    let fixture = both_sent();
    fixture.tool("verify --level content").run().exits(0);
    fixture.tool("purge --execute --yes --older-than 5d").run().exits(0);
    let left = fixture.database.psql("SELECT count(*) FROM workflow_runs");
    assert_ne!(left.trim(), "60", "nothing was purged: the test tests nothing");
    let (outcome, json) = parity(&fixture, "--runs-per-app 3");
    outcome.exits(0);
    assert_ne!(json["compared_as_bounds"], "0", "{json}");
    assert_ne!(json["purged_rows"], "0", "{json}");
    // Postgres has no row of it any more: only the ledger knows that there was one.
    let gone = fixture.sls.logs(RUNS);
    let oldest = gone.iter().min_by_key(|log| log.time).unwrap();
    fixture.sls.tamper(RUNS, &json!({"drop_log": {"id": oldest.field("id")}}));
    finds(&fixture, "--runs-per-app 0", &["shipped runs_of_all_apps"]);
}

#[test]
fn dify_s_own_logs_are_named_and_a_run_that_both_have_sent_is_found() {
    let fixture = sent();
    let id = run_id(&fixture, 3);
    let log = fixture.sls.logs(RUNS).into_iter().find(|log| log.field("id") == id).unwrap();
    // Dify's writer logs a run that begins, and logs it again when it has finished.
    let store = |values: &[(&str, &str)]| {
        let mut log = log.clone();
        for (key, value) in &mut log.contents {
            if let Some((_, new)) = values.iter().find(|(name, _)| name == key) {
                *value = (*new).to_owned();
            }
        }
        crate::verify::cases::store_of(&fixture, RUNS, &[log], "172.18.0.9");
    };
    let other = "00000000-0000-4000-8000-000000000001";
    store(&[("id", other), ("status", "running"), ("finished_at", ""), ("log_version", "1")]);
    store(&[("id", other)]);
    let (outcome, json) = parity(&fixture, ONLY_RUNS);
    outcome.exits(0);
    let quirks: Vec<_> =
        json["quirks"].as_array().unwrap().iter().map(|one| one["quirk"].as_str()).collect();
    for quirk in ["own_logs", "running_count"] {
        assert!(quirks.contains(&Some(quirk)), "{json}");
    }
    store(&[]);
    finds(&fixture, ONLY_RUNS, &["shipped token_cost"]);
}

#[test]
fn answers_that_stay_incomplete_are_not_known_and_never_equal() {
    let fixture = sent();
    fixture.sls.switch(&json!({"incomplete_every": 1}));
    let (outcome, json) = parity(&fixture, "--tables workflow_runs");
    outcome.exits(75).tells("stays incomplete");
    assert_eq!(json["verdict"], "not_known");
}

#[test]
fn before_a_pass_is_done_nothing_is_called_different() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(60, 20);
    fixture.tool("run --max-rows 20").run().exits(75);
    parity(&fixture, "").0.exits(75).tells("no pass from the beginning is done");
}
