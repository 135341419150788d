//! The rows of the table that are about SLS.

use std::time::Duration;

use serde_json::{Value, json};

use crate::faults::Numbers::{Proven, Unproven};
use crate::faults::{Case, SHORT, ends_well, fault, refuse};
use crate::harness::database::Database;
use crate::harness::fixture::Fixture;
use crate::harness::poll;
use crate::harness::simulator::Simulator;

/// `name: Case { … }`: the test of that name, and one in each world.
macro_rules! cases {
    ($($name:ident in $numbers:expr => $changed:tt)*) => {$(
        #[test]
        fn $name() {
            for numbers in $numbers {
                cases!(@of numbers $changed).holds();
            }
        }
    )*};
    (@of $numbers:ident { $($field:ident: $value:expr),* $(,)? }) => {
        Case { $($field: $value,)* ..Case::of($numbers) }
    };
}

cases! {
    an_answer_lost_after_storing_is_found_and_not_doubled in [Proven, Unproven] => {
        faults: vec![fault("put", 1, 2, json!("cut_after"))],
        exits: &[0],
    }
    an_answer_cut_in_the_middle_is_found_and_not_doubled in [Proven, Unproven] => {
        faults: vec![fault("put", 2, 2, json!("cut_middle"))],
        exits: &[0],
    }
    a_request_lost_before_storing_is_sent_again in [Proven, Unproven] => {
        faults: vec![fault("put", 1, 2, json!("cut_before"))],
        exits: &[0],
    }
    a_server_error_without_storing_is_sent_again in [Proven, Unproven] => {
        faults: vec![fault("put", 1, 2, refuse(500, "InternalServerError", "oops"))],
        exits: &[0],
    }
    a_server_error_although_it_stored_a_second_later_is_not_doubled in [Proven, Unproven] => {
        faults: vec![fault("put", 1, 2, json!({"store_late_ms": {
            "after_ms": 1000, "answer": {"status": 503, "code": "ServerBusy"}}}))],
        exits: &[0],
    }
    a_cut_although_it_stored_seconds_later_is_not_doubled in [Proven, Unproven] => {
        faults: vec![fault("put", 2, 1, json!({"store_late_ms": {
            "after_ms": 2000, "answer": "cut"}}))],
        exits: &[0],
    }
    html_with_status_200_is_not_believed in [Proven, Unproven] => {
        faults: vec![fault("put", 1, 1, json!("html"))],
        tells: &["not from SLS"],
    }
    an_answer_without_a_request_id_is_not_believed in [Proven, Unproven] => {
        faults: vec![fault("put", 1, 1, json!("no_request_id"))],
        tells: &["not from SLS"],
    }
    a_quota_is_waited_for_and_the_number_used_again in [Proven, Unproven] => {
        faults: vec![fault("put", 1, 3, refuse(403, "ShardWriteQuotaExceed", "wait"))],
    }
    a_number_recorded_before_the_quota_refused_it_is_replaced in [Proven, Unproven] => {
        switches: json!({"number_recorded": "before_quota", "shard_writes_per_s": 8}),
    }
    an_old_signature_is_renewed in [Proven, Unproven] => {
        faults: vec![fault("put", 1, 1, json!({"delay_ms": 5000}))],
    }
    a_signature_that_is_refused_is_renewed in [Proven, Unproven] => {
        faults: vec![fault("put", 1, 1, refuse(400, "RequestTimeExpired", "late"))],
    }
    an_older_spelling_of_it_is_understood in [Proven, Unproven] => {
        switches: json!({"older_spelling": true}),
        faults: vec![fault("put", 1, 1, json!({"delay_ms": 5000}))],
    }
    a_request_past_the_deadline_that_is_stored_later_is_not_doubled in [Proven, Unproven] => {
        faults: vec![fault("put", 1, 1, json!({"delay_ms": 2500}))],
        arguments: "--deadline-s 1",
    }
    what_is_stored_but_not_yet_visible_is_waited_for in [Proven, Unproven] => {
        switches: json!({"receive_lag_ms": 800}),
        faults: vec![fault("put", 1, 2, json!("cut_after"))],
    }
    a_group_whose_halves_appear_one_after_the_other_is_whole_in_the_end in [Proven, Unproven] => {
        switches: json!({"split_groups_ms": 500}),
        faults: vec![fault("put", 1, 2, json!("cut_after"))],
    }
    numbers_that_are_not_kept_double_nothing in [Unproven] => {
        switches: json!({"seqid": "ignored"}),
        faults: vec![
            fault("put", 1, 2, json!("cut_after")),
            fault("put", 2, 2, json!("cut_before")),
            fault("put", 6, 1, refuse(500, "InternalServerError", "oops")),
        ],
    }
    numbers_that_are_forgotten_double_nothing in [Unproven] => {
        switches: json!({"numbers_kept_max": 1}),
        faults: vec![fault("put", 1, 3, json!("cut_after"))],
    }
    a_clock_apart_from_ours_decides_about_signatures in [Proven, Unproven] => {
        switches: json!({"clock_offset_s": 1200}),
        faults: vec![fault("put", 1, 1, json!("cut_after"))],
        // Whole seconds, of clocks that were not read at the same moment.
        tells: &["SLS's clock is ", " s ahead of ours"],
    }
    a_clock_two_days_ahead_loses_and_doubles_nothing in [Proven] => {
        switches: json!({"clock_offset_s": 172_800}),
    }
    errors_of_reading_are_waited_for in [Proven, Unproven] => {
        faults: vec![
            fault("pull", 1, 3, json!("cut_middle")),
            fault("cursor", 2, 2, refuse(500, "InternalServerError", "oops")),
            fault("shards", 2, 2, json!("html")),
            fault("pull", 6, 2, refuse(403, "ShardReadQuotaExceed", "wait")),
        ],
    }
    an_unknown_attempt_before_a_refusal_is_looked_for in [Proven, Unproven] => {
        faults: vec![
            fault("put", 1, 1, json!("cut_after")),
            fault("put", 2, 1, refuse(400, "PostBodyInvalid", "cannot be parsed")),
        ],
        arguments: "--workers 1",
    }
    content_that_is_refused_is_halved_and_goes_through in [Proven, Unproven] => {
        faults: vec![fault("put", 1, 3, refuse(400, "PostBodyInvalid", "cannot be parsed"))],
        tells: &[" halved"],
    }
}

#[test]
fn a_number_older_than_its_signature_is_not_repeated() {
    let case = Case {
        // Else the tail reader finds it before.
        switches: json!({"receive_lag_ms": 5000}),
        faults: vec![
            fault("put", 1, 1, json!("cut_after")),
            fault("put", 2, 100_000, refuse(403, "WriteQuotaExceed", "wait")),
        ],
        ..Case::of(Proven)
    };
    let fixture = case.fixture();
    let running = fixture.tool(&format!("{SHORT} --workers 1")).spawn();
    // The batch is given up when the life of its signature is over, whatever keeps it from going.
    fixture
        .database
        .wait_until("SELECT count(*) > 0 FROM sls_backfill.batch WHERE unknowns > 0", "t");
    // From then on SLS may have forgotten the number.
    fixture.sls.switch(&json!({"seqid": "ignored"}));
    fixture.sls.forget_faults();
    running.wait();
    ends_well(&fixture);
}

#[test]
fn a_refusal_after_an_attempt_of_another_process_does_not_mean_that_nothing_is_there() {
    let case = Case {
        // Else the tail reader finds it before.
        switches: json!({"receive_lag_ms": 2500}),
        faults: vec![fault("put", 1, 1, json!({"hold_after": {}}))],
        ..Case::of(Proven)
    };
    let fixture = case.fixture();
    let running = fixture.tool(&format!("{SHORT} --workers 1")).spawn();
    fixture.sls.wait_until("held", 1);
    running.kill();
    fixture.sls.release();
    // The next run repeats its number, and is refused for the content.
    fixture.sls.order(&fault("put", 1, 4, refuse(400, "PostBodyInvalid", "cannot be parsed")));
    fixture.tool(&format!("{SHORT} --workers 1")).run().exits(0);
    ends_well(&fixture);
}

#[test]
fn a_half_that_appears_after_it_was_looked_for_is_told_and_found_later() {
    let case = Case {
        switches: json!({"split_groups_ms": 9000}),
        faults: vec![fault("put", 1, 1, json!("cut_after"))],
        ..Case::of(Unproven)
    };
    let fixture = case.fixture();
    let run = format!("{SHORT} --tables workflow_runs --max-rows 30");
    let outcome = fixture.tool(&run).run().exits(75);
    outcome.tells("nothing of it is sent again").tells("1 found in SLS, 0 sent again");
    fixture.sls.switch(&json!({"split_groups_ms": null}));
    ends_well(&fixture);
}

#[test]
fn a_batch_behind_readers_that_lag_further_than_the_clock_believes_is_not_stored_twice() {
    // With a bound the clock is right. Without one, every group of a shard waits behind the one
    // before: in the end for a quarter of a minute.
    for lag_max_ms in [Some(800), None] {
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
        poll("all to be there", Duration::from_secs(120), || {
            let outcome = fixture.tool(&run).deadline(Duration::from_secs(120)).run();
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
    }
}

#[test]
fn where_nothing_was_acknowledged_before_the_clock_alone_tells_what_is_not_there() {
    for lag_max_ms in [Some(500), None] {
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
    }
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
    let running = fixture.tool(&run).arg("--max-rows=60").deadline(Duration::from_secs(60));
    let outcome = running.run().exits(75);
    outcome.tells("does not give back yet").tells("1 still in doubt").tells("hint: run the same");
    let stored = fixture.stored("workflow_execution");
    let mut once = stored.clone();
    once.dedup();
    assert_eq!(stored, once);
}

#[test]
fn a_batch_that_sls_has_lost_does_not_keep_others_in_doubt() {
    let fixture = Fixture { database: Database::of_shape("dify-1.12"), sls: Simulator::start() };
    fixture.tool("init --shards 1").run().exits(0);
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

#[test]
fn a_batch_that_cannot_be_looked_for_yet_ends_the_run_with_75() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 20);
    fixture.sls.order(&fault("put", 2, 1, json!({"hold_before": {"then_cut": true}})));
    let run = "run --batch-kib 64 --tables workflow_runs --workers 1 --late-s 1 --visible-s 1";
    let running = fixture.tool(run).spawn();
    fixture.sls.wait_until("held", 1);
    running.kill();
    fixture.sls.release();
    // Its number is used up; but the shard that says so from now on may not know it.
    fixture.split_shards();
    fixture.database.psql(
        "UPDATE sls_backfill.batch SET number_used_at = now() - interval '1 minute' \
         WHERE state = 'intent'",
    );
    let outcome = fixture.tool(run).deadline(Duration::from_secs(40)).run().exits(75);
    outcome.tells("may still be on its way to SLS").tells("1 still in doubt");
}

#[test]
fn a_batch_that_is_all_there_ends_though_nobody_has_marked_it() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 20);
    fixture.tool("run --batch-kib 64").run().exits(0);
    // As if two processes had each seen a half of it at the same time.
    fixture.database.psql(
        "UPDATE sls_backfill.batch SET state = 'intent', stored_at = NULL, proved_at = NULL, \
         signed_at = signed_at - interval '20 minutes' WHERE id = \
           (SELECT id FROM sls_backfill.batch WHERE table_name = 'workflow_runs' LIMIT 1)",
    );
    let outcome = fixture.tool("run").deadline(Duration::from_secs(40)).run().exits(0);
    outcome.tells("1 found in SLS, 0 sent again");
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_run_ends_when_sls_goes_away_with_its_last_batch() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(40, 20);
    fixture.sls.order(&fault("put", 1, 1, json!("hold")));
    let run = format!("{SHORT} --tables workflow_runs --workers 2");
    let running = fixture.tool(&run).deadline(Duration::from_secs(180)).spawn();
    fixture.sls.wait_until("held", 1);
    let Fixture { database, sls } = fixture;
    drop(sls);
    // Its other stages have nothing left to do but to wait for this batch.
    running.wait().exits(75).tells("run the same command again");
    let open = "SELECT count(*) FROM sls_backfill.batch WHERE state = 'intent'";
    assert_eq!(database.psql(open), "1");
}

#[test]
fn who_cannot_read_what_is_sent_does_not_send_on() {
    let case = Case {
        faults: vec![
            fault("pull", 5, 100_000, refuse(401, "Unauthorized", "no right to read")),
            fault("put", 1, 100_000, json!({"delay_ms": 300})),
        ],
        ..Case::of(Proven)
    };
    let fixture = case.fixture();
    fixture.tool(&format!("{SHORT} --workers 1")).run().exits(70).tells("Unauthorized");
    let (sent, all) =
        (fixture.stored("workflow_execution").len(), fixture.finished("workflow_runs"));
    assert!(sent < all.len(), "{sent} rows were sent though nobody could read them");
    ends_well(&fixture);
}

#[test]
fn a_logstore_that_was_made_anew_is_not_written_to_before_an_audit() {
    let fixture = Case::of(Proven).fixture();
    fixture.tool(SHORT).arg("--max-rows=100").run().exits(75);
    fixture.delete_logstore("workflow_execution");
    fixture.tool("init --ttl-days 3650").run().exits(0);
    let outcome = fixture.tool(SHORT).run();
    assert!(outcome.status.code().is_some_and(|code| code == 70 || code == 3), "{outcome}");
    outcome.tells("dify-sls-backfill audit");
    assert_eq!(fixture.stored("workflow_execution"), [""; 0]);
}

#[test]
fn a_refused_row_is_held_alone_and_the_rest_goes_through() {
    for numbers in [Proven, Unproven] {
        let case = Case::of(numbers);
        let fixture = case.fixture();
        // A value of over 1 MB, which this SLS refuses.
        fixture.database.psql(
            "UPDATE workflow_runs SET outputs = '{\"a\": \"' || repeat('x', 1200000) || '\"}' \
             WHERE id = (SELECT id FROM workflow_runs WHERE status = 'succeeded' \
             ORDER BY created_at LIMIT 1)",
        );
        fixture.sls.switch(&json!({"big_values": "refuse"}));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rejects.jsonl");
        let run = format!("{SHORT} --rejects {}", file.display());
        fixture.tool(&run).run().exits(5).tells("SLS refuses 1 rows");
        let held = fixture.held("workflow_runs");
        let (id, reason) = held.iter().find(|(_, reason)| *reason != "running").unwrap();
        assert_eq!(reason, "refused");
        let stored = fixture.stored("workflow_execution");
        let missing: Vec<_> = fixture
            .finished("workflow_runs")
            .into_iter()
            .filter(|finished| !stored.contains(finished))
            .collect();
        assert_eq!(missing, [id.as_str()]);
        fixture.tool("status").run().exits(0).prints(&format!("{id} refused: SLS says Post"));
        // It is not tried again by itself.
        fixture.tool(SHORT).run().exits(5);
        let lines = std::fs::read_to_string(&file).unwrap();
        assert!(lines.contains(id) && lines.lines().count() == 1, "{lines}");
        // Once the cause is gone, the file is fed again.
        fixture.sls.switch(&json!({"big_values": "store"}));
        let retry = format!("{SHORT} --retry {}", file.display());
        fixture.tool(&retry).run().exits(0).tells("1 held rows of");
        ends_well(&fixture);
    }
}

#[test]
fn a_shard_that_splits_in_mid_run_doubles_nothing() {
    for forgets in [false, true] {
        let case = Case {
            switches: json!({"child_forgets_numbers": forgets}),
            faults: vec![
                fault("put", 3, 2, json!("cut_after")),
                fault("put", 8, 1, json!({"hold_after": {}})),
            ],
            ..Case::of(Proven)
        };
        let fixture = case.fixture();
        let running = fixture.tool(&format!("{SHORT} --workers 2")).spawn();
        fixture.sls.wait_until("held", 1);
        fixture.split_shards();
        fixture.sls.order(&fault("put", 1, 2, json!("cut_after")));
        fixture.sls.release();
        running.wait();
        ends_well(&fixture);
    }
}

#[test]
fn a_logstore_deleted_in_mid_run_is_told_and_nothing_is_sent_into_the_new_one_unasked() {
    let case = Case { faults: vec![fault("put", 4, 1, json!("hold"))], ..Case::of(Proven) };
    let fixture = case.fixture();
    let running = fixture.tool(&format!("{SHORT} --workers 1")).spawn();
    fixture.sls.wait_until("held", 1);
    fixture.delete_logstore("workflow_execution");
    fixture.sls.release();
    let outcome = running.wait();
    assert!(outcome.status.code().is_some_and(|code| code == 70 || code == 3), "{outcome}");
    outcome.tells("LogStoreNotExist");
}

#[test]
fn credentials_that_expire_in_mid_run_stop_it_and_the_next_run_goes_on() {
    for numbers in [Proven, Unproven] {
        let expired = refuse(401, "SecurityTokenExpired", "the token has expired");
        let case = Case {
            faults: vec![fault("put", 4, 1000, expired)],
            exits: &[70],
            tells: &["SecurityTokenExpired", "hint: "],
            ..Case::of(numbers)
        };
        case.holds();
    }
}

#[test]
fn a_run_without_an_answer_for_its_last_batch_ends_with_75_and_says_until_when() {
    let case = Case::of(Unproven);
    let fixture = case.fixture();
    fixture.sls.switch(&json!({"signature_life_s": 900}));
    fixture.sls.order(&fault("put", 2, 1, json!("cut_before")));
    let outcome = fixture.tool("run --batch-kib 64 --visible-s 1").run();
    outcome.exits(75).tells("may still be on its way to SLS").tells("1 still in doubt");
    let open = "SELECT count(*) FROM sls_backfill.batch WHERE state = 'intent'";
    assert_eq!(fixture.database.psql(open).trim(), "1");
    // As if its signature's life were over.
    fixture.database.psql(
        "UPDATE sls_backfill.batch SET signed_at = signed_at - interval '20 minutes' \
         WHERE state = 'intent'",
    );
    fixture.tool("run --visible-s 1").run().exits(0).tells("1 sent again");
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_run_does_not_wait_for_a_batch_whose_shard_was_split_longer_than_for_others() {
    let fixture = Case::of(Proven).fixture();
    fixture.sls.switch(&json!({"signature_life_s": 900}));
    fixture.sls.order(&fault("put", 2, 1, json!("hold")));
    let run = "run --batch-kib 64 --visible-s 1 --tables workflow_runs";
    let running = fixture.tool(&format!("{run} --workers 1")).spawn();
    fixture.sls.wait_until("held", 1);
    running.kill();
    fixture.sls.forget_faults();
    // As if SLS had refused its number; but the shard that knows the number is no more.
    fixture.database.psql(
        "UPDATE sls_backfill.batch SET number_used_at = now() - interval '5 minutes' \
         WHERE state = 'intent'",
    );
    fixture.split_shards();
    let outcome = fixture.tool(run).deadline(Duration::from_secs(60)).run();
    outcome.exits(75).tells("may still be on its way to SLS").tells("1 still in doubt");
}

#[test]
fn a_batch_whose_halves_two_processes_have_found_at_once_is_known_to_be_stored() {
    let fixture = Case::of(Proven).fixture();
    fixture.sls.order(&fault("put", 2, 1, json!({"hold_after": {}})));
    let run = format!("{SHORT} --tables workflow_runs");
    let running = fixture.tool(&format!("{run} --workers 1")).spawn();
    fixture.sls.wait_until("held", 1);
    running.kill();
    fixture.sls.release();
    // Both have read to the end, and each has seen its own half alone: nobody has marked it.
    for shard in 0..2 {
        let end = fixture.sls.call(
            "GET",
            &format!("/logstores/workflow_execution/shards/{shard}"),
            &[("type", "cursor"), ("from", "end")],
            "",
        );
        let end: Value = serde_json::from_str(&end).unwrap();
        fixture.database.psql(&format!(
            "UPDATE sls_backfill.read_position SET cursor = {} WHERE shard = {shard}",
            end["cursor"].to_string().replace('"', "'")
        ));
    }
    fixture.database.psql(
        "INSERT INTO sls_backfill.sighting (batch_id, logstore, generation, shard, rows, digest, \
           groups, first_cursor, last_cursor) \
         SELECT id, logstore, generation, 0, rows, digest, 1, 'x', 'x' FROM sls_backfill.batch \
         WHERE id NOT IN (SELECT batch_id FROM sls_backfill.sighting); \
         UPDATE sls_backfill.batch SET unknowns = 1, signed_at = now() - interval '1 minute', \
           number_used_at = now() - interval '1 minute' WHERE state = 'intent'",
    );
    fixture.tool(&run).deadline(Duration::from_secs(60)).run().exits(0).tells("1 found in SLS");
    assert_eq!(fixture.stored("workflow_execution"), fixture.finished("workflow_runs"));
}

#[test]
fn short_windows_are_for_a_local_sls_only() {
    let fixture = crate::harness::fixture::Fixture::new("dify-1.12");
    fixture
        .tool(SHORT)
        .env("ALIYUN_SLS_ENDPOINT", "https://cn-hangzhou.log.aliyuncs.com")
        .deadline(Duration::from_secs(20))
        .run()
        .exits(2)
        .tells("could double rows");
}
