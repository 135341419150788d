//! What `verify`, `repair`, `purge` and `restore` make of a logstore that is not the one that rows
//! were sent to.

use serde_json::Value;

use crate::faults::SHORT;
use crate::harness::fixture::Fixture;
use crate::harness::simulator::Simulator;
use crate::harness::tool::Tool;
use crate::trust::generations::make_anew;
use crate::trust::{AUDIT, RUNS, account};

const VERIFY: &str = "verify --level content --tables workflow_runs --signature-life-s 1 --late-s 0 \
                      --visible-s 0";

const PURGE: &str = "purge --older-than 0h --tables workflow_runs --execute --yes";

/// What reads SLS, beside `run` and `audit`.
const OTHERS: [&str; 5] = [
    VERIFY,
    "verify --level counts",
    "repair --tables workflow_runs",
    PURGE,
    "restore --since 2000-01-01 --execute",
];

/// A history of 120 runs that was sent, and verified byte for byte.
fn verified() -> Fixture {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(120, 20);
    fixture.tool(SHORT).run().exits(0);
    fixture.sent_an_hour_ago();
    fixture.tool(VERIFY).run().exits(0);
    fixture
}

fn number(fixture: &Fixture, sql: &str) -> u64 {
    fixture.database.psql(sql).trim().parse().unwrap()
}

#[test]
fn no_command_believes_a_logstore_that_was_made_anew() {
    let fixture = verified();
    assert!(number(&fixture, "SELECT count(*) FROM sls_backfill.proof") > 0);
    make_anew(&fixture, 3650);
    for command in OTHERS {
        // Whoever meets it first, and everybody after.
        fixture.tool(command).run().exits(3).tells("was deleted and made again");
    }
    fixture.tool(VERIFY).run().exits(3).tells("was deleted and made again");
    assert_eq!(number(&fixture, "SELECT count(*) FROM workflow_runs"), 120);
    assert_eq!(fixture.stored(RUNS), [""; 0]);
}

#[test]
fn no_command_believes_another_sls_whose_project_has_the_same_name() {
    let fixture = verified();
    let other = Fixture { database: fixture.database, sls: Simulator::start() };
    let elsewhere = Tool::new(["init", "--ttl-days", "3650"]).envs(other.sls.env());
    let own_ledger = crate::harness::database::Database::fresh().shape("dify-1.12");
    elsewhere.envs(own_ledger.env()).run().exits(0);
    for command in OTHERS {
        other.tool(command).run().exits(3).tells(&format!("not to 127.0.0.1:{}", other.sls.port));
    }
    assert_eq!(number(&other, "SELECT count(*) FROM workflow_runs"), 120);
}

#[test]
fn a_proof_of_an_earlier_logstore_lets_nothing_go_and_a_new_one_names_the_new_logstore() {
    let fixture = verified();
    // As if it had been sent five years ago into a logstore that keeps logs for a month: no audit
    // calls it lost, and in the ledger it is proved still.
    fixture.database.psql(
        "UPDATE sls_backfill.batch SET signed_at = signed_at - interval '5 years', \
         stored_at = stored_at - interval '5 years'; \
         UPDATE sls_backfill.generation SET ttl_days = 30",
    );
    make_anew(&fixture, 3650);
    fixture.tool(VERIFY).run().exits(3);
    fixture.tool(AUDIT).run().exits(0);
    let proved = "SELECT count(*) FROM sls_backfill.batch WHERE state = 'proved' \
                  AND table_name = 'workflow_runs'";
    assert!(number(&fixture, proved) > 0);
    let plan =
        fixture.tool("purge --older-than 0h --tables workflow_runs --output json").run().exits(0);
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    assert_eq!(plan["plan"]["workflow_runs"]["total"]["proved"], "0", "{plan}");
    fixture.tool(PURGE).run().exits(0).prints("workflow_runs: 0 rows deleted");
    assert_eq!(number(&fixture, "SELECT count(*) FROM workflow_runs"), 120);
    // Proofs of the new logstore name it, and count.
    let id = "UPDATE workflow_runs SET status = 'succeeded', finished_at = now() - interval '3 h' \
              WHERE status = 'running'";
    fixture.database.psql(id);
    fixture.tool(SHORT).run().exits(0);
    fixture.sent_an_hour_ago();
    fixture.tool(VERIFY).run().exits(0);
    let proofs = "SELECT p.generation FROM sls_backfill.proof p \
                  JOIN sls_backfill.batch b ON b.id = p.batch_id AND b.generation = 2";
    assert_eq!(fixture.database.psql(proofs).trim(), "2", "it names its logstore");
    fixture.tool(PURGE).run().exits(0).prints("workflow_runs: 2 rows deleted");
}

#[test]
fn rows_that_were_purged_before_their_logs_were_lost_are_told() {
    let fixture = verified();
    fixture.tool(PURGE).run().exits(0).prints("workflow_runs: 118 rows deleted");
    make_anew(&fixture, 3650);
    fixture
        .tool(AUDIT)
        .run()
        .exits(4)
        .tells("118 of these rows were purged from Postgres, so nobody here has them any more");
    assert_eq!(account(&fixture, "workflow_runs")["lost"], 118);
    // Nothing of them is in Postgres to be sent again, and the account says so.
    fixture.tool(SHORT).arg("--resend-lost").run().exits(0);
    assert_eq!(fixture.stored(RUNS), [""; 0]);
    let account = account(&fixture, "workflow_runs");
    assert_eq!((&account["lost"], &account["live"]), (&0.into(), &0.into()), "{account}");
    assert_eq!(account["held"]["missing"], 118, "{account}");
}
