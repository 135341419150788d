//! Readers that are behind: what is stored and not visible yet, against what is not there.

use serde_json::json;

use crate::faults::Numbers::Unproven;
use crate::faults::{Case, SHORT, ends_well, fault};
use crate::harness::database::Database;
use crate::harness::fixture::Fixture;
use crate::harness::simulator::Simulator;
use crate::harness::{DEADLINE, at_once, poll};

/// The first batch is stored without an answer, and its second half shows after nine seconds: it is
/// looked for after seven.
fn halved() -> Case {
    Case {
        switches: json!({"split_groups_ms": 9000}),
        faults: vec![fault("put", 1, 1, json!("cut_after"))],
        ..Case::of(Unproven)
    }
}

/// All batches go to one shard.
fn in_one_shard() -> Fixture {
    let fixture = Fixture { database: Database::of_shape("dify-1.12"), sls: Simulator::start() };
    fixture.tool("init --shards 1").run().exits(0);
    fixture
}

#[test]
fn a_half_that_appears_after_it_was_looked_for_is_told_and_found_later() {
    // The last row is a batch of its own behind that half, whose reading back keeps the run at work
    // until the half is there.
    let fixture = halved().world_of(in_one_shard());
    let run = format!("{SHORT} --tables workflow_runs --max-rows 30");
    let outcome = fixture.tool(&run).run().exits(75);
    outcome.tells("nothing of it is sent again").tells("1 found in SLS, 0 sent again");
    fixture.sls.switch(&json!({"split_groups_ms": null}));
    ends_well(&fixture);
}

#[test]
fn a_half_that_appears_after_the_end_of_a_run_is_told_and_found_by_the_next_one() {
    let fixture = halved().fixture();
    let run = format!("{SHORT} --tables workflow_runs --max-rows 20");
    let outcome = fixture.tool(&run).run().exits(4);
    outcome.tells("nothing of it is sent again").tells("1 still in doubt");
    fixture.sls.switch(&json!({"split_groups_ms": null}));
    ends_well(&fixture);
}

#[test]
fn a_batch_behind_readers_that_lag_further_than_the_clock_believes_is_not_stored_twice() {
    // With a bound the clock is right. Without one, every group of a shard waits behind the one
    // before: in the end for a quarter of a minute.
    at_once([Some(800), None], |lag_max_ms| {
        let fixture = Fixture::new("dify-1.12");
        fixture.fill(2000, 20);
        fixture.set_proven(false);
        fixture.sls.switch(&json!({"signature_life_s": 3, "split_groups_ms": 400,
                                   "split_groups_lag_max_ms": lag_max_ms}));
        for nth in [2, 40, 64] {
            fixture.sls.order(&json!({"kind": "put", "nth": nth, "action": "cut_after",
                                      "logstore": "workflow_execution"}));
        }
        let run = format!("{SHORT} --tables workflow_runs --no-canary-search --workers 4");
        poll("all to be there", DEADLINE, || {
            let outcome = fixture.tool(&run).run();
            match outcome.status.code() {
                Some(75) => None,
                Some(0) => Some(()),
                _ => panic!("it does not go on\n{outcome}"),
            }
        });
        let (stored, wanted) =
            (fixture.stored("workflow_execution"), fixture.finished("workflow_runs"));
        assert_eq!(stored.len(), wanted.len(), "lag of at most {lag_max_ms:?} ms");
        assert_eq!(stored, wanted);
    });
}

#[test]
fn where_nothing_was_acknowledged_before_the_clock_alone_tells_what_is_not_there() {
    at_once([Some(500), None], |lag_max_ms| {
        let fixture = Fixture::new("dify-1.12");
        fixture.fill(20, 20);
        fixture.set_proven(false);
        fixture.sls.switch(&json!({"signature_life_s": 3, "split_groups_ms": 500,
                                   "split_groups_lag_max_ms": lag_max_ms}));
        fixture.sls.order(&fault("put", 1, 1, json!("cut_before")));
        let run = format!("{SHORT} --tables workflow_runs --workers 1 --verify none");
        let outcome = fixture.tool(&run).run().exits(0).tells("0 found in SLS, 1 sent again");
        assert!(!outcome.stderr.contains("does not give back"), "{outcome}");
        assert_eq!(fixture.stored("workflow_execution"), fixture.finished("workflow_runs"));
    });
}

#[test]
fn who_waits_for_readers_that_lag_says_so_and_ends_with_75() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 20);
    fixture.set_proven(false);
    fixture.sls.switch(&json!({"signature_life_s": 3}));
    let run = format!("{SHORT} --tables workflow_runs --verify none --workers 1");
    // All but the first two batches are acknowledged, and not to be seen for a long time.
    fixture.tool(&run).arg("--max-rows=60").run().exits(75);
    fixture.sls.switch(&json!({"receive_lag_ms": 3_000_000}));
    fixture.tool(&run).arg("--max-rows=60").run().exits(75);
    fixture.sls.order(&fault("put", 1, 1, json!("cut_after")));
    let running = fixture.tool(&run).arg("--max-rows=60");
    let outcome = running.run().exits(75);
    outcome.tells("does not give back yet").tells("1 still in doubt").tells("hint: run the same");
    let stored = fixture.stored("workflow_execution");
    let mut once = stored.clone();
    once.dedup();
    assert_eq!(stored, once);
}

#[test]
fn a_batch_that_sls_has_lost_does_not_keep_others_in_doubt() {
    let fixture = in_one_shard();
    fixture.fill(200, 20);
    fixture.set_proven(false);
    fixture.sls.switch(&json!({"signature_life_s": 3}));
    let run = format!("{SHORT} --tables workflow_runs --verify none --workers 1");
    fixture.tool(&run).arg("--max-rows=60").run().exits(75);
    let first = "SELECT l.id || '/' || b.id FROM sls_backfill.batch b, sls_backfill.ledger l \
                 ORDER BY b.id LIMIT 1";
    let lost = fixture.database.psql(first);
    fixture.sls.tamper("workflow_execution", &json!({"drop_batch": lost}));
    fixture.sls.order(&fault("put", 1, 1, json!("cut_before")));
    let outcome = fixture.tool(&run).arg("--max-rows=60").run().exits(75);
    outcome.tells("0 found in SLS, 1 sent again").tells("--max-rows is reached");
}
