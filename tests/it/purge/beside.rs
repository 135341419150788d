//! A purge while others change what it looks at: SLS between proof and purge, and a run.

use serde_json::json;

use crate::harness::fixture::{Fixture, TABLES};
use crate::harness::{DEADLINE, poll};
use crate::purge::{NODES, count, migrated, purge};
use crate::queries::asking::Asking;

#[test]
fn what_is_hidden_in_sls_after_its_proof_stays() {
    let fixture = migrated();
    fixture.tool("verify --level content").run().exits(0);
    let id = fixture.finished("workflow_runs")[0].clone();
    let body = json!({
        "from": 0, "to": 4_102_444_800_u64, "query": format!("id: \"{id}\""), "topic": "",
        "accurate": true,
    });
    let path = "/logstores/workflow_execution/deletelogtasks";
    fixture.sls.call("POST", path, &[], &body.to_string());
    let asked = format!("* | SELECT count(*) AS logs FROM workflow_execution WHERE id = '{id}'");
    poll("the log to be hidden", DEADLINE, || {
        let found = Asking(&fixture.sls).sql("workflow_execution", &asked);
        (found[0]["logs"] == "0").then_some(())
    });
    // PullLogs still gives it, so the proof alone would do.
    purge(&fixture, "").run().exits(4).prints("SLS's search does not find every row");
    let left =
        fixture.database.psql(&format!("SELECT count(*) FROM workflow_runs WHERE id = '{id}'"));
    assert_eq!(left, "1");
}

#[test]
fn what_sls_has_forgotten_stays_however_short_it_need_be_kept() {
    let fixture = migrated();
    for (_, logstore) in TABLES {
        let body = json!({"logstoreName": logstore, "ttl": 10, "shardCount": 2}).to_string();
        fixture.sls.call("PUT", &format!("/logstores/{logstore}"), &[], &body);
    }
    purge(&fixture, " --keep 0").run();
    let old = "workflow_runs WHERE finished_at IS NOT NULL \
        AND finished_at < (now() AT TIME ZONE 'UTC') - interval '10 days'";
    assert!(count(&fixture.database, old) > 50, "half of 118 runs of 20 days");
}

#[test]
fn beside_a_run_nothing_goes_that_is_on_its_way() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(400, 10);
    fixture.tool("run --batch-kib 64 --max-rows 600").run().exits(75);
    fixture.slow_down(50);
    let running = fixture.tool("run --batch-kib 64 --workers 2").spawn();
    for _ in 0..3 {
        // A day that a run is about to change is not equal, and its rows stay for this time.
        let code = purge(&fixture, "").run().status.code();
        assert!(matches!(code, Some(0 | 4 | 75)), "{code:?}");
        fixture.tool("status").run().exits(0);
    }
    running.wait().exits(0);
    purge(&fixture, "").run().exits(0);
    assert_eq!(
        (count(&fixture.database, "workflow_runs"), count(&fixture.database, NODES)),
        (8, 32)
    );
    let marks = "SELECT sum(purged_rows), sum(purged_gone) FROM sls_backfill.batch";
    assert_eq!(fixture.database.psql(marks), "1960|0");
    for (table, logstore) in TABLES {
        let stored = fixture.stored(logstore);
        let rows: u64 = if table == NODES { 1568 } else { 392 };
        assert_eq!(stored.len() as u64, rows, "{table}: each row is there once");
    }
    fixture.tool("run").run().exits(0).tells("nothing new to do");
}
