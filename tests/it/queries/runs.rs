//! Statements 1 to 10: what `logstore_api_workflow_run_repository.py` asks about runs.

use dify_sls_backfill::dify::readers::{self, Daily};

use crate::queries::asking::{Migrated, NODES, RUNS, Row, same_rows, same_set};

const FIELDS: &str = "id, tenant_id, app_id, workflow_id, triggered_from, type, version, graph, \
    inputs, outputs, status, error_message, total_tokens, total_steps, exceptions_count, \
    created_by_role, created_by, started_at, finished_at";

/// The first run of the app, by id.
fn some_run(dify: &Migrated) -> String {
    dify.value(&format!("SELECT min(id) FROM run_log WHERE {}", dify.of_trigger()))
}

fn list(dify: &Migrated, status: &str, limit: u32) -> Vec<Row> {
    dify.sls(
        RUNS,
        "*",
        &format!(
            "
            SELECT * FROM (
                SELECT *, ROW_NUMBER() OVER (PARTITION BY id ORDER BY log_version DESC) AS rn
                FROM workflow_execution
                WHERE tenant_id='{}'
                  AND app_id='{}'
                  AND (triggered_from='{}' OR triggered_from='debugging')
                  {status}
                  \u{20}
            ) t
            WHERE rn = 1
            ORDER BY created_at DESC
            LIMIT {limit}
        ",
            dify.tenant, dify.app, dify.trigger
        ),
    )
}

fn list_twin(dify: &Migrated, status: &str) -> Vec<Row> {
    dify.twin(&format!(
        "SELECT {FIELDS} FROM run_log WHERE {} AND triggered_from IN ('{}', 'debugging') {status}",
        dify.of_app(),
        dify.trigger
    ))
}

#[test]
fn statement_1_lists_the_runs_of_an_app() {
    let dify = Migrated::shared();
    let all = list_twin(&dify, "");
    assert!(all.len() > 21, "{}", all.len());
    same_set(list(&dify, "", 1000), all.clone());
    let of_trigger =
        dify.twin(&format!("SELECT {FIELDS} FROM run_log WHERE {}", dify.of_trigger()));
    same_set(dify.sls(RUNS, "*", &readers::list(&dify.owner(), None, 1000)), of_trigger);
    // Without an order to go by, a page is any rows of the list, each once.
    let page = list(&dify, "", 21);
    let mut ids: Vec<_> = page.iter().map(|row| &row["id"]).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 21);
    assert!(ids.iter().all(|id| all.iter().any(|row| &row["id"] == *id)));
}

#[test]
fn statement_1_lists_the_runs_of_a_status() {
    let dify = Migrated::shared();
    let statuses = dify.value(&format!(
        "SELECT string_agg(DISTINCT status, ' ') FROM run_log WHERE {}",
        dify.of_trigger()
    ));
    for status in statuses.split(' ') {
        let filter = format!("AND status='{status}'");
        same_set(list(&dify, &filter, 1000), list_twin(&dify, &filter));
    }
    assert_eq!(list(&dify, "AND status='running'", 21), []);
}

#[test]
fn statement_2_finds_a_run_by_id_tenant_and_app() {
    let dify = Migrated::shared();
    let id = some_run(&dify);
    let twin = dify.twin(&format!("SELECT {FIELDS} FROM run_log WHERE id = '{id}'"));
    let sql = format!(
        "
                    SELECT * FROM (
                        SELECT *,
                            ROW_NUMBER() OVER (PARTITION BY id ORDER BY log_version DESC) as rn
                        FROM \"workflow_execution\"
                        WHERE id = '{id}'
                          AND tenant_id = '{}'
                          AND app_id = '{}'
                          AND __time__ > 0
                    ) AS subquery WHERE rn = 1
                    LIMIT 100
                ",
        dify.tenant, dify.app
    );
    same_rows(&dify.sls_plain(RUNS, &sql), &twin);
    let query = readers::run_search(&dify.owner(), &id);
    same_rows(&dify.search(RUNS, &query), &twin);
    let foreign = format!("id:\"{id}\" and tenant_id:\"{}\" and app_id:\"x\"", dify.tenant);
    assert_eq!(dify.search(RUNS, &foreign), []);
}

#[test]
fn statement_3_finds_a_run_by_id_alone() {
    let dify = Migrated::shared();
    let id = some_run(&dify);
    let twin = dify.twin(&format!("SELECT {FIELDS} FROM run_log WHERE id = '{id}'"));
    let sql = readers::run_by_id(&id);
    same_rows(&dify.sls_plain(RUNS, &sql), &twin);
    same_rows(&dify.search(RUNS, &format!("id:\"{id}\"")), &twin);
}

#[test]
fn search_gives_every_field_in_full() {
    let dify = Migrated::shared();
    // The longest text of all: SQL would cut it.
    let id = dify.value("SELECT id FROM node_log ORDER BY octet_length(outputs) DESC LIMIT 1");
    let found = dify.search(NODES, &format!("id:\"{id}\""));
    let outputs = dify.value(&format!("SELECT outputs FROM node_log WHERE id = '{id}'"));
    assert!(outputs.len() > 20_000, "{}", outputs.len());
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(json(&found[0]["outputs"]), json(&outputs));
}

#[test]
fn statement_4_counts_the_runs_of_a_status() {
    let dify = Migrated::shared();
    for status in ["succeeded", "failed", "stopped", "partial-succeeded"] {
        let sls = dify.sls(RUNS, "*", &readers::count_status(&dify.owner(), status));
        let twin = dify.twin(&format!(
            "SELECT count(*) FROM run_log WHERE {} AND status = '{status}'",
            dify.of_trigger()
        ));
        same_rows(&sls, &twin);
    }
}

#[test]
fn statement_5_counts_the_running_runs() {
    let dify = Migrated::shared();
    let sls = dify.sls(RUNS, "*", &readers::count_running(&dify.owner()));
    // A backfill writes none that still runs.
    same_rows(&sls, &dify.twin("SELECT 0 AS count"));
}

#[test]
fn statement_6_counts_the_runs_of_each_status() {
    let dify = Migrated::shared();
    let sls = dify.sls(RUNS, "*", &readers::count_by_status(&dify.owner()));
    let twin = dify.twin(&format!(
        "SELECT status, count(*) FROM run_log WHERE {} GROUP BY status ORDER BY status COLLATE \"C\"",
        dify.of_trigger()
    ));
    let mut sls = sls;
    sls.sort_by(|a, b| a["status"].cmp(&b["status"]));
    same_rows(&sls, &twin);
}

/// The days of statements 7 to 9, unlimited and within times as the API gives them.
fn daily(dify: &Migrated, wanted: Daily, wanted_twin: &str) {
    let (start, end) = ("2025-12-10T00:00:00", "2025-12-20T13:30:00");
    let filter = format!(
        " AND __time__ >= to_unixtime(from_iso8601_timestamp('{start}')) \
         AND __time__ < to_unixtime(from_iso8601_timestamp('{end}'))"
    );
    let filter_twin = format!(
        " AND date_trunc('second', ended) >= '{start}' AND date_trunc('second', ended) < '{end}'"
    );
    for (filter, filter_twin) in [("", ""), (filter.as_str(), filter_twin.as_str())] {
        let sls = dify.sls(RUNS, "*", &readers::daily(&dify.owner(), wanted, filter));
        let twin = dify.twin(&format!(
            "SELECT ended::date AS date, {wanted_twin} FROM run_log WHERE {} {filter_twin} \
             GROUP BY 1 ORDER BY 1",
            dify.of_trigger()
        ));
        assert!(twin.len() > 5, "{twin:?}");
        same_rows(&sls, &twin);
    }
}

#[test]
fn statement_7_counts_the_runs_of_each_day() {
    daily(&Migrated::shared(), Daily::Runs, "count(*) AS runs");
}

#[test]
fn statement_8_counts_the_users_of_each_day() {
    daily(&Migrated::shared(), Daily::Terminals, "count(DISTINCT created_by) AS terminal_count");
}

#[test]
fn statement_9_sums_the_tokens_of_each_day() {
    daily(&Migrated::shared(), Daily::Tokens, "sum(total_tokens) AS token_count");
}

#[test]
fn statement_10_averages_the_runs_of_a_user_of_each_day() {
    let dify = Migrated::shared();
    let mut sls = dify.sls(RUNS, "*", &readers::average_interactions(&dify.owner()));
    sls.sort_by(|a, b| a["date"].cmp(&b["date"]));
    let twin = dify.twin(&format!(
        "SELECT avg(n) AS interactions, date FROM (SELECT ended::date AS date, created_by, \
         count(*) AS n FROM run_log WHERE {} GROUP BY 1, 2) t GROUP BY date ORDER BY date",
        dify.of_trigger()
    ));
    same_rows(&sls, &twin);
}
