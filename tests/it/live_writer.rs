//! Dify's own writer beside us: what it has stored is not sent, what it has not is, by id.

mod fake;
mod meanwhile;
mod unclear;

use std::collections::BTreeMap;

use crate::faults::SHORT;
use crate::harness::fixture::{Fixture, TABLES};
use crate::live_writer::fake::rows;

const RUNS: &str = "workflow_runs";
const NODES: &str = "workflow_node_executions";

/// That they finished so many days ago, or more recently.
fn since(days: u32) -> String {
    format!("finished_at > now() AT TIME ZONE 'UTC' - interval '{days} days'")
}

/// One in three of the rows, by their ids.
fn third(nth: u32) -> String {
    format!("abs(hashtext(id::text)) % 3 = {nth}")
}

/// The rows of `table` that are held, by reason; those that run are left out.
fn held(fixture: &Fixture, table: &str) -> BTreeMap<String, String> {
    let mut held = fixture.held(table);
    held.retain(|_, reason| reason != "running");
    held
}

/// Fails unless every finished row has one terminal log, Dify's or ours, and Dify's are held.
#[track_caller]
fn every_row_is_there_once(fixture: &Fixture) {
    for (table, logstore) in TABLES {
        let logs = fixture.sls.logs(logstore);
        let terminal: Vec<_> = logs.iter().filter(|log| log.field("status") != "running").collect();
        let finished = fixture.finished(table);
        let writers = |id: &str| -> Vec<&str> {
            let logs = terminal.iter().filter(|log| log.field("id") == id);
            logs.map(|log| log.source.as_str()).collect()
        };
        let wrong: Vec<_> = finished.iter().map(|id| (id, writers(id))).collect();
        let wrong: Vec<_> = wrong.iter().filter(|(_, writers)| writers.len() != 1).collect();
        assert!(wrong.is_empty(), "{table}: not once: {wrong:?}, held {:?}", fixture.held(table));
        let by_dify = terminal.iter().filter(|log| log.source != "dify-sls-backfill");
        let by_dify: BTreeMap<_, _> =
            by_dify.map(|log| (log.field("id").to_owned(), "live".to_owned())).collect();
        assert_eq!(held(fixture, table), by_dify, "{table}");
    }
    fixture.tool("status").run().exits(0);
}

#[test]
fn what_dify_has_written_is_held_and_what_it_has_not_is_sent() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(60, 10);
    let mut counts = BTreeMap::new();
    for (table, _) in TABLES {
        let period = since(4);
        let written = rows(&fixture, table, &format!("{period} AND {}", third(0)));
        written.iter().for_each(|row| {
            row.begin(&fixture);
            row.finish(&fixture);
        });
        // Dify was killed before these finished, or dual write was off by then.
        let begun = rows(&fixture, table, &format!("{period} AND {}", third(1)));
        begun.iter().for_each(|row| row.begin(&fixture));
        let missing = rows(&fixture, table, &format!("{period} AND {}", third(2)));
        assert!(!written.is_empty() && !begun.is_empty() && !missing.is_empty());
        counts.insert(table, written.len());
    }
    fixture
        .tool(SHORT)
        .run()
        .exits(0)
        .tells("workflow_execution holds logs of another writer")
        .tells("are looked up there by id")
        .prints(&format!("held, live: {}", counts[RUNS]))
        .prints(&format!("held, live: {}", counts[NODES]));
    every_row_is_there_once(&fixture);
    fixture.tool(SHORT).run().exits(0).tells("nothing new to do");
    every_row_is_there_once(&fixture);

    fixture.tool("verify").run().exits(0);
    fixture.tool("verify --level content").run().exits(0);
    fixture.tool("verify --level parity --runs-per-app 1000").run().exits(0);
    // It is not ours to purge.
    fixture.tool("purge --older-than 0h --execute --yes").run().exits(0);
    for (table, _) in TABLES {
        let left = fixture.finished(table);
        assert!(held(&fixture, table).keys().all(|id| left.contains(id)), "{table}");
        assert_eq!(left.len(), counts[table], "what is ours is purged");
    }
}

#[test]
fn dual_write_goes_on_off_and_on_and_a_run_comes_every_night() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 12);
    let write = |condition: &str| {
        for (table, _) in TABLES {
            for row in rows(&fixture, table, condition) {
                row.begin(&fixture);
                row.finish(&fixture);
            }
        }
    };
    let before = |days: u32| format!("NOT {}", since(days));
    write(&format!("{} AND {}", since(9), before(7)));
    write(&since(3));
    fixture.tool(SHORT).run().exits(0);
    every_row_is_there_once(&fixture);
    // A day goes by, with Dify's writer on for the younger half of it.
    for (table, _) in TABLES {
        fixture.database.psql(&format!(
            "INSERT INTO {table} SELECT (json_populate_record(t, json_build_object(\
             'id', md5(t.id::text)::uuid))).* FROM {table} t WHERE {}",
            since(2)
        ));
    }
    let new = "id IN (SELECT md5(i.id::text)::uuid FROM workflow_runs i UNION ALL \
               SELECT md5(i.id::text)::uuid FROM workflow_node_executions i)";
    write(&format!("{new} AND {}", since(1)));
    fixture.tool(SHORT).run().exits(0);
    every_row_is_there_once(&fixture);
}

#[test]
fn nodes_that_dify_wrote_twice_are_held_and_log_times_far_from_the_finish_do_not_matter() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(60, 10);
    let nodes = rows(&fixture, NODES, &since(3));
    for (nth, row) in nodes.iter().enumerate() {
        // Its SQL mode repeats an INSERT without an answer, and its servers' clocks differ.
        match nth % 3 {
            0 => (0..2).for_each(|_| row.finish(&fixture)),
            1 => row.finish_at(&fixture, nodes[0].finished_s()),
            _ => row.finish_at(&fixture, row.finished_s() + 7000),
        }
    }
    fixture.tool(SHORT).run().exits(0).prints(&format!("held, live: {}", nodes.len()));
    let ours = fixture.sls.logs("workflow_node_execution");
    let ours = ours.iter().filter(|log| log.source == "dify-sls-backfill").count();
    assert_eq!(ours + nodes.len(), fixture.finished(NODES).len());
}

#[test]
fn who_knows_that_the_other_writer_stores_no_rows_says_so() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(60, 10);
    let written = rows(&fixture, RUNS, &since(3));
    written.iter().for_each(|row| row.finish(&fixture));
    fixture.tool(&format!("{SHORT} --beside-live-writer")).run().exits(0);
    assert_eq!(fixture.stored("workflow_execution").len(), 58 + 1 + written.len());
    assert_eq!(held(&fixture, RUNS), BTreeMap::new());
}

#[test]
fn a_row_of_the_live_period_that_sls_refuses_is_held_for_that() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(60, 10);
    let mut young = rows(&fixture, RUNS, &since(3));
    young.remove(0).finish(&fixture);
    let id = young.pop().unwrap().id;
    fixture.database.psql(&format!(
        "UPDATE workflow_runs SET outputs = '\"' || repeat('a', 1200000) || '\"' WHERE id = '{id}'"
    ));
    fixture.sls.switch(&serde_json::json!({"big_values": "refuse"}));
    fixture.tool(SHORT).run().exits(5);
    assert_eq!(fixture.held(RUNS).get(&id).map(String::as_str), Some("refused"));
    let stored = fixture.stored("workflow_execution");
    assert!(young.iter().all(|row| stored.contains(&row.id)), "the others were sent");
}
