//! Another writer in the logstore: Dify's own, for all that is known.

use serde_json::json;

use crate::faults::SHORT;
use crate::harness::fixture::Fixture;
use crate::trust::{RUNS, group};

/// Days ago, in Unix seconds.
fn days_ago(fixture: &Fixture, days: f64) -> u32 {
    let sql = format!("SELECT (extract(epoch FROM now()) - {days} * 86400)::int8");
    fixture.database.psql(&sql).trim().parse().unwrap()
}

/// As it is given to `--until`.
fn as_time(fixture: &Fixture, unix_s: u32) -> String {
    let sql = format!(
        "SELECT to_char(to_timestamp({unix_s}) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"
    );
    fixture.database.psql(&sql).trim().to_owned()
}

/// A history of ten days, and the log of its youngest run that Dify's writer wrote three days ago.
fn beside_a_live_writer() -> (Fixture, u32) {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    let began = days_ago(&fixture, 3.0);
    let id = fixture.finished("workflow_runs").pop().unwrap();
    fixture.sls.put(RUNS, &group("dify", &[(began + 60, &id), (began, &id)], &[]));
    (fixture, began)
}

#[test]
fn a_plain_run_stops_and_names_the_time_up_to_which_it_may_go() {
    let (fixture, began) = beside_a_live_writer();
    let until = as_time(&fixture, began - 86_400);
    for arguments in [String::new(), format!(" --until {}", as_time(&fixture, began))] {
        fixture
            .tool(&format!("{SHORT}{arguments}"))
            .run()
            .exits(3)
            .tells("workflow_execution holds logs of another writer")
            .tells(&format!("--until {until}"))
            .tells("--beside-live-writer");
    }
    assert_eq!(fixture.stored(RUNS).len(), 2, "nothing of ours");
    assert_eq!(fixture.stored("workflow_node_execution"), [""; 0]);
    fixture.tool(&format!("{SHORT} --until {until}")).run().exits(0);
    let before = "SELECT count(*) FROM workflow_runs WHERE status <> 'running' AND created_at < ";
    let before =
        fixture.database.psql(&format!("{before} '{until}'::timestamptz AT TIME ZONE 'UTC'"));
    assert_eq!((fixture.stored(RUNS).len() - 2).to_string(), before.trim());
    // Who knows better says so.
    fixture.tool(&format!("{SHORT} --beside-live-writer")).run().exits(0);
    assert_eq!(fixture.stored(RUNS).len(), fixture.finished("workflow_runs").len() + 2);
}

#[test]
fn a_row_that_finished_since_the_live_writer_began_is_held() {
    let (fixture, began) = beside_a_live_writer();
    let until = as_time(&fixture, began - 86_400);
    // Created before it, and finished after it: Dify's own writer has it.
    let late = fixture.database.psql(&format!(
        "UPDATE workflow_runs SET status = 'succeeded', finished_at = now() - interval '2 days' \
         WHERE id = (SELECT id FROM workflow_runs WHERE status = 'running' \
           AND created_at < '{until}'::timestamptz AT TIME ZONE 'UTC' LIMIT 1) RETURNING id"
    ));
    fixture.tool(&format!("{SHORT} --until {until}")).run().exits(0).prints("held, live?: 1");
    assert!(!fixture.stored(RUNS).contains(&late.trim().to_owned()));
    fixture.tool(&format!("{SHORT} --until {until}")).run().exits(0).prints("held, live?: 1");
    fixture.tool(&format!("{SHORT} --until {until} --beside-live-writer")).run().exits(0);
    assert!(fixture.stored(RUNS).contains(&late.trim().to_owned()));
}

#[test]
fn an_answer_of_half_of_the_logs_is_none() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 10);
    fixture.sls.switch(&json!({"incomplete_every": 1}));
    fixture
        .tool(SHORT)
        .run()
        .exits(3)
        .tells("nobody knows whether another writer")
        .tells("--beside-live-writer");
    assert_eq!(fixture.stored(RUNS), [""; 0]);
    fixture.tool(&format!("{SHORT} --beside-live-writer --no-canary-search")).run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn what_search_does_not_see_the_reader_sees() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 10);
    fixture.tool(SHORT).run().exits(0);
    fixture.sls.switch(&json!({"index_delay_ms": 3_600_000, "index_delay_recent_ms": 3_600_000}));
    let began = days_ago(&fixture, 2.0);
    fixture.sls.put(RUNS, &group("10.0.0.7", &[(began, "x")], &[]));
    for _ in 0..2 {
        fixture
            .tool(SHORT)
            .run()
            .exits(3)
            .tells("workflow_execution holds logs of another writer")
            .tells(&format!("--until {}", as_time(&fixture, began - 86_400)));
    }
}
