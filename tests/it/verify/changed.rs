//! Rows that change after they were sent: `repair --changed` sends them once more, and they stay one
//! row wherever rows are counted, compared or purged.

use serde_json::{Value, json};

use crate::harness::fixture::Fixture;
use crate::harness::simulator::StoredLog;
use crate::harness::tool::Outcome;
use crate::verify::{RUN, SHORT, run_id, sent, verified};

const LOGSTORE: &str = "workflow_execution";

fn change(fixture: &Fixture, id: &str, set: &str) {
    fixture.database.psql(&format!("UPDATE workflow_runs SET {set} WHERE id = '{id}'"));
}

fn repair(fixture: &Fixture, arguments: &str) -> Outcome {
    let arguments = format!("repair --changed --tables workflow_runs {arguments}");
    fixture.tool(arguments.trim()).run()
}

fn run(fixture: &Fixture) {
    fixture.tool(&format!("{RUN} {SHORT}")).run().exits(0);
}

/// The logs of a row, the oldest version first.
fn logs_of(fixture: &Fixture, id: &str) -> Vec<StoredLog> {
    let logs = fixture.sls.logs(LOGSTORE).into_iter();
    let mut logs: Vec<_> = logs.filter(|log| log.field("id") == id).collect();
    logs.sort_by_key(|log| log.field("log_version").parse::<i64>().unwrap());
    logs
}

#[track_caller]
fn is_equal_on_both_levels(fixture: &Fixture) {
    for level in ["counts", "content"] {
        let (outcome, json) = verified(fixture, &format!("--level {level} --tables workflow_runs"));
        let outcome = outcome.exits(0);
        assert_eq!(json["tables"]["workflow_runs"]["verdict"], "equal", "{level}: {outcome}");
    }
    fixture.tool("status").run().exits(0);
}

#[track_caller]
fn found_changed(fixture: &Fixture, ids: &[&str]) {
    let (outcome, json) = verified(fixture, "--level content --tables workflow_runs");
    let outcome = outcome.exits(4);
    let findings = json["tables"]["workflow_runs"]["findings"].as_array().unwrap().clone();
    assert!(findings.iter().all(|finding| finding["kind"] == "source_changed"), "{outcome}");
    let mut found: Vec<Value> = findings
        .iter()
        .flat_map(|finding| finding["row_ids"].as_array().unwrap().clone())
        .collect();
    found.sort_by_key(Value::to_string);
    let mut wanted = ids.to_vec();
    wanted.sort_unstable();
    assert_eq!(json!(found), json!(wanted), "{outcome}");
}

#[test]
fn a_changed_row_is_sent_once_more_and_stays_one_row() {
    let fixture = sent();
    let (same_day, other_day) = (run_id(&fixture, 3), run_id(&fixture, 40));
    let tokens = "SELECT sum(total_tokens) FROM workflow_runs WHERE id IN ";
    let tokens = fixture.database.psql(&format!("{tokens} ('{same_day}', '{other_day}')"));
    change(&fixture, &same_day, "outputs = '{\"a\": \"mended\"}', total_tokens = 5000");
    change(&fixture, &other_day, "status = 'failed', finished_at = finished_at + interval '26 h'");
    found_changed(&fixture, &[&same_day, &other_day]);
    let before = fixture.database.psql("SELECT count(*) FROM sls_backfill.batch");
    let seen = fixture.tool("status --output json").run().exits(0).stdout;
    repair(&fixture, "")
        .exits(0)
        .prints("2 changed rows would be sent once more by the next run, 0 are left")
        .prints(&format!("would count {} tokens twice", tokens.trim()))
        .tells("nothing was changed");
    assert_eq!(fixture.database.psql("SELECT count(*) FROM sls_backfill.batch"), before);
    assert_eq!(seen, fixture.tool("status --output json").run().exits(0).stdout);

    repair(&fixture, "--execute").exits(0).tells("`dify-sls-backfill run` sends what was opened");
    repair(&fixture, "--execute").exits(0).prints("0 changed rows are sent");
    run(&fixture);
    run(&fixture);
    for id in [&same_day, &other_day] {
        let logs = logs_of(&fixture, id);
        assert_eq!(logs.len(), 2, "{logs:?}");
    }
    assert_eq!(logs_of(&fixture, &same_day)[1].field("outputs"), "{\"a\": \"mended\"}");
    assert_eq!(logs_of(&fixture, &other_day)[1].field("status"), "failed");
    fixture.tool("status").run().exits(0).prints("2 rows were sent once more");
    is_equal_on_both_levels(&fixture);
    repair(&fixture, "").exits(0).prints("0 changed rows would be sent");
}

#[test]
fn a_row_that_changes_again_is_sent_again_and_purged_by_its_newest_log() {
    let fixture = sent();
    let id = run_id(&fixture, 3);
    for nth in 1..3 {
        change(&fixture, &id, &format!("outputs = '{{\"nth\": {nth}}}'"));
        found_changed(&fixture, &[&id]);
        repair(&fixture, "--execute").exits(0).prints("1 changed rows are sent once more");
        run(&fixture);
        is_equal_on_both_levels(&fixture);
    }
    let logs = logs_of(&fixture, &id);
    let outputs: Vec<_> = logs.iter().map(|log| log.field("outputs")).collect();
    assert_eq!(outputs[1..], ["{\"nth\": 1}", "{\"nth\": 2}"], "the newest wins");
    let purge = "purge --older-than 0h --execute --yes --tables workflow_runs";
    fixture.tool(purge).run().exits(0).prints("118 rows deleted").prints("0 stay because");
    let marks = "SELECT sum(purged_rows), sum(purged_gone), sum(purged_changed) \
        FROM sls_backfill.batch";
    assert_eq!(fixture.database.psql(marks), "118|0|0");
    fixture.tool(purge).run().exits(0).prints("0 rows deleted in 0 batches");
    is_equal_on_both_levels(&fixture);
    let back = "restore --since 2000-01-01 --execute --tables workflow_runs";
    fixture.tool(back).run().exits(0).prints("118 rows are back");
    let outputs = format!("SELECT outputs FROM workflow_runs WHERE id = '{id}'");
    assert_eq!(fixture.database.psql(&outputs), "{\"nth\": 2}");
    is_equal_on_both_levels(&fixture);
}

#[test]
fn what_a_purge_found_changed_needs_no_verification() {
    let fixture = sent();
    let id = run_id(&fixture, 3);
    change(&fixture, &id, "version = 'mended'");
    let purge = "purge --older-than 0h --execute --yes --tables workflow_runs";
    fixture.tool(purge).run().exits(0).prints("117 rows deleted").prints("`repair --changed`");
    repair(&fixture, "--execute").exits(0).prints("1 changed rows are sent once more");
    run(&fixture);
    is_equal_on_both_levels(&fixture);
    fixture.tool(purge).run().exits(0).prints("1 rows deleted").prints("0 stay because");
    let left = "SELECT count(*) FROM workflow_runs WHERE finished_at IS NOT NULL";
    assert_eq!(fixture.database.psql(left), "0");
}

#[test]
fn a_row_that_changes_before_it_is_sent_once_more_is_found_again() {
    let fixture = sent();
    let id = run_id(&fixture, 3);
    change(&fixture, &id, "version = 'one'");
    found_changed(&fixture, &[&id]);
    repair(&fixture, "--execute").exits(0);
    change(&fixture, &id, "version = 'two'");
    fixture.tool(&format!("{RUN} {SHORT}")).run().exits(0).tells("has changed once more");
    assert_eq!(logs_of(&fixture, &id).len(), 1);
    found_changed(&fixture, &[&id]);
    repair(&fixture, "--execute").exits(0).prints("1 changed rows are sent once more");
    run(&fixture);
    assert_eq!(logs_of(&fixture, &id)[1].field("version"), "two");
    is_equal_on_both_levels(&fixture);
}

#[test]
fn what_runs_again_finished_earlier_or_lost_its_log_is_left() {
    let fixture = sent();
    let [running, earlier, lost] = [3, 4, 60].map(|nth| run_id(&fixture, nth));
    change(&fixture, &running, "status = 'running'");
    change(&fixture, &earlier, "finished_at = finished_at - interval '1 minute'");
    change(&fixture, &lost, "version = 'x'");
    found_changed(&fixture, &[&running, &earlier, &lost]);
    fixture.sls.tamper(LOGSTORE, &json!({"drop_log": {"id": lost}}));
    repair(&fixture, "--execute")
        .exits(4)
        .prints("0 changed rows are sent once more by the next run, 3 are left")
        .tells("its status is running")
        .tells("Dify would take the older log")
        .tells("nothing is added to it before that is well");
    run(&fixture);
    assert_eq!(logs_of(&fixture, &running).len(), 1);
}
