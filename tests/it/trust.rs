//! What the ledger may believe: not that a logstore which is gone holds what was sent, not what
//! anybody may write into SLS, and not functions that anybody may make in Postgres.

use std::sync::Arc;

use dify_sls_backfill::wire::log_group::LogGroupWriter;
use serde_json::Value;

use crate::faults::{SHORT, fault, refuse};
use crate::harness::at_once;
use crate::harness::cluster::Cluster;
use crate::harness::database::Database;
use crate::harness::fixture::Fixture;

mod generations;
mod other_commands;
mod tags;

const AUDIT: &str = "audit --signature-life-s 3 --late-s 1 --visible-s 1";

const RUNS: &str = "workflow_execution";

/// A LogGroup as somebody else writes it: one log each of these times, ids and contents.
fn group(source: &str, logs: &[(u32, &str)], tags: &[(&str, &str)]) -> Vec<u8> {
    let mut writer = LogGroupWriter::default();
    for (time, id) in logs {
        writer.begin_log(*time, 0);
        writer.field("id", id.as_bytes());
        writer.end_log();
    }
    writer.finish(Some(""), Some(source), tags);
    writer.bytes().to_vec()
}

/// How many batches of the ledger are in each state.
fn batches(fixture: &Fixture) -> String {
    let sql = "SELECT state, count(*) FROM sls_backfill.batch GROUP BY state ORDER BY state";
    fixture.database.psql(sql).trim().replace('\n', " ")
}

/// The account of a table, as `status` tells it in JSON.
fn account(fixture: &Fixture, table: &str) -> Value {
    let status = fixture.tool("status --output json").run().exits(0);
    let status: Value = serde_json::from_str(status.stdout.trim()).unwrap();
    status["tables"][table].clone()
}

#[test]
fn functions_that_somebody_made_in_public_are_not_called() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 5);
    // Each of them fits better than Postgres's own, which is polymorphic, or comes before it.
    fixture.database.psql(
        "CREATE FUNCTION public.octet_length(text) RETURNS integer LANGUAGE plpgsql AS \
           $$ BEGIN RAISE EXCEPTION 'shadowed octet_length'; END $$; \
         CREATE FUNCTION public.unnest(uuid[]) RETURNS SETOF uuid LANGUAGE plpgsql AS \
           $$ BEGIN RAISE EXCEPTION 'shadowed unnest'; END $$; \
         CREATE FUNCTION public.cardinality(text[]) RETURNS integer LANGUAGE plpgsql AS \
           $$ BEGIN RAISE EXCEPTION 'shadowed cardinality'; END $$; \
         CREATE FUNCTION public.is_equal(uuid, uuid) RETURNS boolean LANGUAGE plpgsql AS \
           $$ BEGIN RAISE EXCEPTION 'shadowed ='; END $$; \
         CREATE OPERATOR public.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = public.is_equal)",
    );
    fixture.tool("doctor").run().exits(0);
    fixture.tool("run --dry-run").run().exits(0);
    fixture.tool(SHORT).run().exits(0);
    fixture.tool(AUDIT).run().exits(0);
    fixture.tool("status").run().exits(0);
    fixture.database.psql("DROP OPERATOR public.= (uuid, uuid)");
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_wrong_source_is_refused_and_stops_nothing() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 5);
    let run = || fixture.tool(SHORT).arg("--ledger-url").arg(fixture.database.url());
    run().arg("--max-rows=50").run().exits(75);
    let cluster = Arc::new(Cluster::start(&[("fsync", "off")]));
    let elsewhere = Database::fresh_in(&cluster).shape("dify-1.12");
    let in_the_wrong_place = || run().envs(elsewhere.env());
    for join in [&[][..], &["--join"]] {
        let mut wrong = in_the_wrong_place();
        for argument in join {
            wrong = wrong.arg(argument);
        }
        wrong
            .run()
            .exits(3)
            .tells("the source is not the one it was")
            .tells("nothing was sent")
            .tells("check DB_HOST");
    }
    let stopped = "SELECT count(*) FROM sls_backfill.ledger WHERE stopped_because IS NOT NULL";
    assert_eq!(fixture.database.psql(stopped).trim(), "0");
    run().run().exits(0);
    fixture.holds_every_finished_row_once();
    // Who has moved Dify's database says so.
    in_the_wrong_place().arg("--new-source").run().exits(0);
    run().run().exits(3).tells("the source is not the one it was");
}

#[test]
fn a_request_that_sls_has_timed_out_is_repeated() {
    at_once([true, false], |proven| {
        let fixture = Fixture::new("dify-1.12");
        fixture.fill(100, 5);
        fixture.set_proven(proven);
        let timed_out = refuse(408, "RequestTimeout", "the request has timed out");
        fixture.sls.order(&fault("put", 1, 2, timed_out));
        fixture.tool(SHORT).run().exits(0).tells("RequestTimeout");
        fixture.holds_every_finished_row_once();
    });
}

#[test]
fn an_endpoint_far_away_without_tls_is_warned_of() {
    let fixture = Fixture::new("dify-1.12");
    let mut far =
        fixture.tool("run").env("ALIYUN_SLS_ENDPOINT", "http://cn-hangzhou.log.invalid").spawn();
    far.wait_for("logs and their signatures travel unencrypted");
    far.kill();
    let near = fixture.tool(SHORT).run().exits(0);
    assert!(!near.stderr.contains("unencrypted"), "{near}");
}
