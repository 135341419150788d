//! `verify` and `repair`: how the data is wrong × the level × does verify notice.
//!
//! The table is that of docs/verify.md: a test reads it there.

mod cases;
mod changed;
mod parity;
mod repair;

use serde_json::Value;

use crate::harness::fixture::{Fixture, TABLES};
use crate::harness::tool::Outcome;

/// Small batches, so that there are several; one table is enough for most.
const RUN: &str = "run --batch-kib 64 --tables workflow_runs";

/// SLS's times are short enough for a test.
const SHORT: &str = "--signature-life-s 1 --late-s 0 --visible-s 0";

/// What a level of `verify` says.
fn verified(fixture: &Fixture, arguments: &str) -> (Outcome, Value) {
    let outcome = fixture.tool(&format!("verify --output json {arguments} {SHORT}")).run();
    let json = serde_json::from_str(&outcome.stdout).unwrap_or(Value::Null);
    (outcome, json)
}

/// A history of 120 runs of 20 days that was sent in several batches, a while ago.
fn sent() -> Fixture {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(120, 20);
    fixture.tool(RUN).run().exits(0);
    fixture.sent_an_hour_ago();
    fixture
}

/// The id of the `nth` finished run, the oldest first.
fn run_id(fixture: &Fixture, nth: u32) -> String {
    let sql = format!(
        "SELECT id FROM workflow_runs WHERE finished_at IS NOT NULL \
         ORDER BY created_at OFFSET {nth} LIMIT 1"
    );
    fixture.database.psql(&sql).trim().to_owned()
}

/// The tag of the `nth` batch.
fn tag(fixture: &Fixture, nth: u32) -> String {
    let sql = format!(
        "SELECT l.id || '/' || b.id FROM sls_backfill.batch b, sls_backfill.ledger l \
         ORDER BY b.id OFFSET {nth} LIMIT 1"
    );
    fixture.database.psql(&sql).trim().to_owned()
}

#[test]
fn a_clean_history_is_equal_on_both_levels() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(400, 20);
    fixture.tool("run --batch-kib 64").run().exits(0);
    for level in ["counts", "content"] {
        let outcome = fixture.tool(&format!("verify --level {level}")).run().exits(0);
        let widest = outcome.stdout.lines().map(|line| line.chars().count()).max();
        assert!(widest.is_some_and(|widest| widest <= 80), "{outcome}");
        outcome.tells("everything is equal");
        let (outcome, json) = verified(&fixture, &format!("--level {level}"));
        let outcome = outcome.exits(0);
        for (table, _) in TABLES {
            assert_eq!(json["tables"][table]["verdict"], "equal", "{outcome}");
        }
    }
    let (_, json) = verified(&fixture, "--level content");
    let runs = &json["tables"]["workflow_runs"];
    assert_eq!(runs["in_sls"]["proved"]["rows"], "392");
    assert_eq!(runs["in_postgres"]["equal"]["rows"], "392");
    let proofs = "SELECT count(*) FROM sls_backfill.batch b WHERE NOT EXISTS \
        (SELECT FROM sls_backfill.proof p WHERE p.batch_id = b.id)";
    assert_eq!(fixture.database.psql(proofs).trim(), "0", "every batch has a proof");
    let (outcome, json) = verified(&fixture, "--level content --sample 50%");
    let outcome = outcome.exits(0);
    let sample = &json["tables"]["workflow_node_executions"];
    assert_eq!(sample["batches"], sample["equal"], "{outcome}");
    assert_ne!(sample["batches"], "0", "{outcome}");
}

#[test]
fn only_what_finished_between_two_days_is_verified() {
    let fixture = sent();
    let sql = "SELECT (min(finished_at) + (max(finished_at) - min(finished_at)) / 2)::date \
               FROM workflow_runs";
    let middle = fixture.database.psql(sql).trim().to_owned();
    let days = |bounds: &str| -> Vec<String> {
        let (outcome, json) = verified(&fixture, &format!("--tables workflow_runs {bounds}"));
        outcome.exits(0);
        let days = json["tables"]["workflow_runs"]["days"].as_array().unwrap();
        days.iter().filter_map(|day| day["day"].as_str().map(str::to_owned)).collect()
    };
    let (before, after) = (days(&format!("--until {middle}")), days(&format!("--since {middle}")));
    assert!(!before.is_empty() && before.iter().all(|day| *day < middle), "{before:?}");
    assert!(!after.is_empty() && after.iter().all(|day| *day >= middle), "{after:?}");
    assert_eq!([before, after].concat(), days("--level counts"), "each day is on one side");

    // A change is noticed on its own side alone.
    let id = run_id(&fixture, 0);
    fixture.database.psql(&format!("UPDATE workflow_runs SET outputs = NULL WHERE id = '{id}'"));
    let content = "--level content --tables workflow_runs";
    verified(&fixture, &format!("{content} --since {middle}")).0.exits(0);
    verified(&fixture, &format!("{content} --until {middle}")).0.exits(4);
}

#[test]
fn a_hundred_clean_seeds_give_no_alarm() {
    // Five databases with twenty histories each: when rows were made and when they finished, how they
    // ended, and what is odd about them, comes from the seed; how they are cut and sent from the round.
    let rounds: Vec<_> =
        (0..5).map(|round: u32| std::thread::spawn(move || clean_round(round))).collect();
    for round in rounds {
        round.join().unwrap();
    }
}

fn clean_round(round: u32) {
    let shape = ["dify-1.12", "dify-1.10", "dify-0.15", "dify-newest", "dify-0.6"][round as usize];
    let fixture = Fixture::new(shape);
    fixture.fill(160, 1 + round * 3);
    let mut sql = String::new();
    for seed in round * 20..round * 20 + 20 {
        let own = format!("abs(hashtext(id::text)) % 20 = {}", seed % 20);
        sql += &format!(
            "SELECT setseed({seed} / 100.0); \
             UPDATE workflow_runs SET created_at = created_at - random() * interval '300 days', \
             outputs = CASE WHEN random() < 0.3 THEN NULL WHEN random() < 0.1 THEN 'no json' \
               ELSE outputs END, error = CASE WHEN random() < 0.2 THEN '' ELSE error END \
             WHERE {own}; \
             UPDATE workflow_runs SET finished_at = created_at + random() * interval '3 days' \
             WHERE finished_at IS NOT NULL AND created_at < now() - interval '5 days' AND {own}; \
             UPDATE workflow_node_executions SET created_at = created_at - random() * interval \
             '90 days', finished_at = finished_at + random() * interval '1 hour' \
             WHERE random() < 0.5 AND {own}; "
        );
    }
    fixture.database.psql(&sql);
    let (kib, workers, rows) = (64 << (round % 3), 1 + round % 4, 20 + round * 9);
    let run = format!("run --batch-kib {kib} --workers {workers} --range-rows {rows}");
    // Once with work left, and once when all is done.
    for arguments in [format!("{run} --max-rows {}", 60 + round * 20), run] {
        let code = fixture.tool(&arguments).run().status.code();
        assert!(matches!(code, Some(0 | 75)), "round {round}, {arguments}: {code:?}");
        for level in ["counts", "content", "parity --runs-per-app 2"] {
            let (outcome, _) = verified(&fixture, &format!("--level {level}"));
            // What Dify shows is only known when all is sent.
            let is_early = code == Some(75) && level.starts_with("parity");
            assert_eq!(
                outcome.status.code(),
                Some(if is_early { 75 } else { 0 }),
                "round {round}, seeds from {round}0: {outcome}"
            );
        }
    }
}

#[test]
fn a_verification_that_is_stopped_goes_on_where_it_was() {
    let fixture = sent();
    let hold = serde_json::json!({"kind": "pull", "nth": 3, "times": 1, "action": "hold"});
    fixture.sls.order(&hold);
    let arguments = format!("verify --level content --tables workflow_runs {SHORT}");
    let running = fixture.tool(&arguments).spawn();
    fixture.sls.wait_until("held", 1);
    running.kill();
    fixture.sls.release();
    fixture.sls.forget_faults();
    fixture.tool(&arguments).run().exits(0).tells("going on with the verification");
    fixture.tool(&format!("{arguments} --recheck")).run().exits(0);
    fixture.tool(&format!("{arguments} --older-than 1h")).run().exits(0).prints("0 batches");
}

#[test]
fn content_is_right_while_a_run_is_at_work() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(400, 20);
    fixture.slow_down(150);
    let running = fixture.tool("run --batch-kib 64 --workers 2").spawn();
    let mut seen_open = false;
    loop {
        for level in ["counts", "content"] {
            let (outcome, json) = verified(&fixture, &format!("--level {level}"));
            let code = outcome.status.code();
            // Counts may change while they are taken; nothing is called different.
            assert!(matches!(code, Some(0 | 75)), "{outcome}");
            seen_open |= json["tables"]["workflow_runs"]["in_sls"]["open"]["batches"] != "0";
        }
        let open = "SELECT count(*) FROM sls_backfill.process WHERE ended_at IS NULL";
        if fixture.database.psql(open).trim() == "0" {
            break;
        }
    }
    running.wait().exits(0);
    assert!(seen_open, "the run was over too soon: the test tests nothing");
    for level in ["counts", "content"] {
        verified(&fixture, &format!("--level {level}")).0.exits(0);
    }
}

#[test]
fn days_of_sending_are_told_from_days_of_finishing() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(120, 20);
    fixture.tool(&format!("{RUN} --log-time ingest")).run().exits(0);
    let (outcome, json) = verified(&fixture, "--tables workflow_runs");
    outcome.exits(0);
    let runs = &json["tables"]["workflow_runs"];
    assert_eq!(runs["day_of_logs"], "finished_at");
    assert!(runs["days"].as_array().unwrap().len() > 15);
    let id = run_id(&fixture, 3);
    fixture.sls.tamper("workflow_execution", &serde_json::json!({"drop_log": {"id": id}}));
    let (outcome, json) = verified(&fixture, "--tables workflow_runs");
    outcome.exits(4).tells("are missing in SLS");
    let days = json["tables"]["workflow_runs"]["days"].as_array().unwrap().clone();
    assert_eq!(days.iter().filter(|day| day["missing"] == "1").count(), 1);
}
