//! What SLS cannot tell is not sent, and asked again.

use serde_json::{Value, json};

use crate::faults::SHORT;
use crate::harness::fixture::Fixture;
use crate::live_writer::fake::rows;
use crate::live_writer::{RUNS, every_row_is_there_once, held, since};

/// Sixty runs of ten days, of which Dify has written those of the last two days, but the youngest.
fn beside_dify() -> Fixture {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(60, 10);
    let mut written = rows(&fixture, RUNS, &since(2));
    written.pop().unwrap();
    written.iter().for_each(|row| row.finish(&fixture));
    fixture
}

/// How many runs finished since a day before Dify's writer began are held `live?`; none is sent.
#[track_caller]
fn all_are_unclear(fixture: &Fixture) {
    let held = held(fixture, RUNS);
    let young = rows(fixture, RUNS, &since(2));
    let stored = fixture.sls.logs("workflow_execution");
    for row in &young {
        assert_eq!(held.get(&row.id).map(String::as_str), Some("live?"));
        let ours = |log: &&crate::harness::simulator::StoredLog| {
            log.source == "dify-sls-backfill" && log.field("id") == row.id
        };
        assert!(!stored.iter().any(|log| ours(&log)), "{} was sent", row.id);
    }
    assert!(stored.iter().any(|log| log.source == "dify-sls-backfill"), "older rows are sent");
    fixture.tool("status").run().exits(0);
}

#[test]
fn an_answer_that_stays_incomplete_is_none_and_later_runs_ask_again() {
    let fixture = beside_dify();
    fixture.sls.switch(&json!({"sql_logs_max": 0}));
    fixture.tool(SHORT).run().exits(0).prints("held, live?: ");
    all_are_unclear(&fixture);
    fixture.tool(SHORT).run().exits(0).prints("held, live?: ");
    all_are_unclear(&fixture);
    fixture.sls.switch(&json!({"sql_logs_max": null}));
    fixture.tool(SHORT).run().exits(0);
    every_row_is_there_once(&fixture);
}

#[test]
fn an_answer_that_is_complete_when_it_is_asked_for_again_is_one() {
    let fixture = beside_dify();
    fixture.sls.switch(&json!({"incomplete_times": 2}));
    fixture.tool(SHORT).run().exits(0);
    every_row_is_there_once(&fixture);
}

#[test]
fn a_window_that_is_too_large_for_an_answer_is_halved() {
    let fixture = beside_dify();
    // Dify's logs of two days are about a dozen.
    fixture.sls.switch(&json!({"sql_logs_max": 3}));
    fixture.tool(SHORT).run().exits(0);
    every_row_is_there_once(&fixture);
}

#[test]
fn without_sql_rows_are_held_and_looked_up_when_it_is_back() {
    let fixture = beside_dify();
    let set_mode = |mode: &str| {
        let path = "/logstores/workflow_execution";
        let mut settings: Value =
            serde_json::from_str(&fixture.sls.call("GET", path, &[], "")).unwrap();
        settings["mode"] = json!(mode);
        fixture.sls.call("PUT", path, &[], &settings.to_string());
    };
    set_mode("query");
    fixture.tool(SHORT).run().exits(0).prints("held, live?: ");
    all_are_unclear(&fixture);
    set_mode("standard");
    fixture.tool(SHORT).run().exits(0);
    every_row_is_there_once(&fixture);
}

#[test]
fn whether_there_is_another_writer_at_all_must_be_known() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(60, 10);
    fixture.sls.switch(&json!({"incomplete_every": 1}));
    fixture
        .tool(SHORT)
        .run()
        .exits(75)
        .tells("nobody knows whether another writer")
        .tells("--beside-live-writer");
    assert_eq!(fixture.stored("workflow_execution"), [""; 0]);
    fixture.tool(&format!("{SHORT} --beside-live-writer --no-canary-search")).run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn what_the_reader_has_met_and_search_does_not_find_makes_rows_wait() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(60, 10);
    // Readers meet what is written since they began.
    fixture.tool(&format!("{SHORT} --max-rows 10")).run().exits(75);
    fixture.sls.switch(&json!({"index_delay_ms": 3_600_000, "index_delay_recent_ms": 3_600_000}));
    let mut written = rows(&fixture, RUNS, &since(2));
    written.pop().unwrap();
    written.iter().for_each(|row| row.finish(&fixture));
    fixture
        .tool(&format!("{SHORT} --no-canary-search"))
        .run()
        .exits(0)
        .tells("search does not find them");
    all_are_unclear(&fixture);
    fixture.sls.switch(&json!({"index_delay_ms": 0, "index_delay_recent_ms": 0}));
    fixture.tool(SHORT).run().exits(0);
    every_row_is_there_once(&fixture);
}
