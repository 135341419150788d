//! `verify` and `repair`: how the data is wrong × the level × does verify notice.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::fixture::{Fixture, TABLES};
use crate::harness::tool::Outcome;

/// Small batches, so that there are several.
const RUN: &str = "run --batch-kib 64 --tables workflow_runs";

/// What a level of `verify` says of a table.
fn verified(fixture: &Fixture, arguments: &str) -> (Outcome, Value) {
    let outcome = fixture.tool(&format!("verify --output json {arguments}")).run();
    let json = serde_json::from_str(&outcome.stdout).unwrap_or(Value::Null);
    (outcome, json)
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
}
