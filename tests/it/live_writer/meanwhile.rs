//! What happens while a run looks: Dify writes on, and rows change.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::faults::SHORT;
use crate::harness::fixture::{Fixture, TABLES};
use crate::live_writer::fake::rows;
use crate::live_writer::{RUNS, every_row_is_there_once, held, since, third};

/// So many rows does Dify write beside the run.
const ROWS: usize = 150;

#[test]
fn dify_writes_on_beside_a_run_and_every_row_is_stored_once_by_either() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(300, 10);
    for (table, _) in TABLES {
        let written = format!("{} AND {}", since(9), third(0));
        rows(&fixture, table, &written).iter().for_each(|row| row.finish(&fixture));
        // Rows that Dify is about to finish late; the run must not see them yet.
        fixture.database.psql(&format!(
            "CREATE TABLE later_{table} AS SELECT * FROM {table} WHERE false; \
             INSERT INTO later_{table} SELECT (json_populate_record(t, json_build_object('id', \
               md5('later' || t.id::text)::uuid))).* FROM {table} t \
             WHERE status <> 'running' AND {} ORDER BY md5(t.id::text) LIMIT {ROWS}",
            since(8)
        ));
    }
    // Search shows what is written only after a while.
    fixture.sls.switch(&json!({"index_delay_ms": 700, "index_delay_recent_ms": 700}));
    std::thread::sleep(Duration::from_millis(700));
    fixture.slow_down(100);
    let is_over = AtomicBool::new(false);
    let (fixture, is_over) = (&fixture, &is_over);
    std::thread::scope(|scope| {
        let dify = scope.spawn(move || {
            let later: Vec<_> = TABLES
                .iter()
                .map(|(table, _)| (table, rows(fixture, &format!("later_{table}"), "true")))
                .collect();
            let mut beside = 0;
            for nth in 0..ROWS {
                for (table, rows) in &later {
                    let Some(row) = rows.get(nth) else { continue };
                    // One in three while its dual write is off.
                    if nth % 3 > 0 {
                        row.begin(fixture);
                        row.finish(fixture);
                    }
                    fixture.database.psql(&format!(
                        "INSERT INTO {table} SELECT * FROM later_{table} WHERE id = '{}'",
                        row.id
                    ));
                }
                beside += usize::from(!is_over.load(Ordering::Relaxed));
            }
            beside
        });
        let run = format!("{SHORT} --workers 2 --range-rows 300");
        let mut runs = 0;
        while !dify.is_finished() {
            let code = fixture.tool(&run).run().status.code();
            assert!(code == Some(0) || code == Some(75) || code == Some(4), "{code:?}");
            runs += 1;
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(dify.join().unwrap() > ROWS / 2, "it wrote beside runs");
        assert!(runs > 0);
    });
    fixture.sls.forget_faults();
    std::thread::sleep(Duration::from_millis(700));
    fixture.tool(&format!("{SHORT} --since 2000-01-01")).run().exits(0);
    every_row_is_there_once(fixture);
}

#[test]
fn a_row_whose_finish_comes_into_the_live_period_after_the_look_is_looked_up_anew() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 20);
    let mut young = rows(&fixture, RUNS, &since(3));
    let last = young.pop().unwrap();
    young.iter().for_each(|row| row.finish(&fixture));
    // All rows are looked at before the first batch is sent.
    fixture.sls.order(&json!({"kind": "put", "nth": 1, "times": 1, "action": "hold"}));
    let run = format!("{SHORT} --tables workflow_runs --workers 1");
    let running = fixture.tool(&run).spawn();
    fixture.sls.wait_until("held", 1);
    let moved = "md5('run41')::uuid";
    fixture.database.psql(&format!(
        "UPDATE workflow_runs SET finished_at = (SELECT finished_at FROM workflow_runs \
         WHERE id = '{}') WHERE id = {moved}",
        last.id
    ));
    let written = rows(&fixture, RUNS, &format!("id = {moved}")).pop().unwrap();
    written.finish(&fixture);
    fixture.sls.release();
    running.wait().exits(0).prints("held, live?: 1");
    fixture.tool(SHORT).run().exits(0);
    assert_eq!(held(&fixture, RUNS)[&written.id], "live");
}

#[test]
fn what_finished_a_moment_ago_waits_until_search_shows_it() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(60, 10);
    rows(&fixture, RUNS, &since(1)).iter().for_each(|row| row.finish(&fixture));
    let finish = |run: u32, interval: &str| {
        fixture.database.psql(&format!(
            "UPDATE workflow_runs SET finished_at = now() AT TIME ZONE 'UTC' - interval '{interval}' \
             WHERE id = md5('run{run}')::uuid"
        ));
        rows(&fixture, RUNS, &format!("id = md5('run{run}')::uuid")).pop().unwrap().id
    };
    let (young, older) = (finish(48, "8 minutes"), finish(47, "12 minutes"));
    fixture.tool(&format!("{SHORT} --settle-s 1")).run().exits(0);
    assert_eq!(held(&fixture, RUNS).get(&young).map(String::as_str), Some("live?"));
    assert!(fixture.stored("workflow_execution").contains(&older));
    assert!(!fixture.stored("workflow_execution").contains(&young));
}
