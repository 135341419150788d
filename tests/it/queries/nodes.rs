//! Statements 11 to 14: what the two repositories of node executions ask.

use dify_sls_backfill::dify::readers::{self, Node, Owner, TRACE_ORDER};

use crate::queries::asking::{Asking, Migrated, NODES, Row, same_rows, same_set};
use serde_json::json;

pub(crate) const FIELDS: &str = "id, tenant_id, app_id, workflow_id, triggered_from, \
    workflow_run_id, \"index\", predecessor_node_id, node_execution_id, node_id, node_type, title, \
    inputs, process_data, outputs, status, error, elapsed_time, execution_metadata, created_at, \
    created_by_role, created_by, finished_at";

/// A node of a workflow with more executions than any other: tenant, app, workflow and node.
pub(crate) fn some_node(dify: &Migrated) -> [String; 4] {
    let node = dify.value(
        "SELECT tenant_id, app_id, workflow_id, node_id FROM node_log WHERE workflow_run_id <> '' \
         GROUP BY 1, 2, 3, 4 ORDER BY count(*) DESC, 4 LIMIT 1",
    );
    node.split('|').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap()
}

/// The run with the most nodes: tenant, app and run.
pub(crate) fn some_run(dify: &Migrated) -> [String; 3] {
    let run = dify.value(
        "SELECT tenant_id, app_id, workflow_run_id FROM node_log WHERE workflow_run_id <> '' \
         GROUP BY 1, 2, 3 ORDER BY count(*) DESC, 3 LIMIT 1",
    );
    run.split('|').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap()
}

#[test]
fn statement_11_finds_the_executions_of_a_node() {
    let dify = Migrated::shared();
    let [tenant, app, workflow, node] = some_node(&dify);
    let condition = format!(
        "tenant_id = '{tenant}' AND app_id = '{app}' AND workflow_id = '{workflow}' \
         AND node_id = '{node}'"
    );
    let all = dify.twin(&format!("SELECT {FIELDS} FROM node_log WHERE {condition}"));
    let window = |limit: u32| {
        format!(
            "SELECT * FROM (
                        SELECT *, ROW_NUMBER() OVER (PARTITION BY id ORDER BY log_version DESC) AS rn
                        FROM \"workflow_node_execution\"
                        WHERE {condition}
                          AND __time__ > 0
                    ) AS subquery WHERE rn = 1
                    LIMIT {limit}"
        )
    };
    same_set(dify.sls_plain(NODES, &window(1000)), all.clone());
    assert_eq!(dify.sls_plain(NODES, &window(100)).len(), all.len().min(100));
    // SDK mode reads the oldest 100 logs.
    let query = format!(
        "tenant_id: \"{tenant}\" and app_id: \"{app}\" and workflow_id: \"{workflow}\" \
         and node_id: \"{node}\""
    );
    let found = dify.search(NODES, &query);
    let ends: Vec<_> = found.iter().map(|row| row["__time__"].parse::<i64>().unwrap()).collect();
    let twin = dify.value(&format!(
        "SELECT string_agg(s::text, ' ' ORDER BY s) FROM (SELECT \
         floor(extract(epoch FROM ended))::bigint AS s FROM node_log WHERE {condition} \
         ORDER BY s LIMIT 100) t"
    ));
    assert_eq!(ends, twin.split(' ').map(|s| s.parse().unwrap()).collect::<Vec<i64>>());
}

#[test]
fn statement_11_finds_the_last_execution_of_a_node() {
    let dify = Migrated::shared();
    let [tenant, app, workflow, node] = some_node(&dify);
    let condition = format!(
        "tenant_id = '{tenant}' AND app_id = '{app}' AND workflow_id = '{workflow}' \
         AND node_id = '{node}'"
    );
    let owner = Owner { tenant, app, trigger: String::new() };
    let sls = dify.sls(
        NODES,
        &condition.replace(" = '", ": \"").replace("' AND", "\" and").replace('\'', "\""),
        &readers::last_of_node(&owner, &Node { workflow, node }),
    );
    same_rows(
        &sls,
        &dify.twin(&format!(
            "SELECT {FIELDS} FROM node_log WHERE {condition} ORDER BY begun DESC LIMIT 1"
        )),
    );
}

/// The nodes of a run, in the order of Dify's newest pages.
pub(crate) fn nodes_of_run(dify: &Migrated, [tenant, app, run]: &[String; 3]) -> Vec<Row> {
    dify.twin(&format!(
        "SELECT {FIELDS} FROM node_log WHERE tenant_id = '{tenant}' AND app_id = '{app}' \
         AND workflow_run_id = '{run}' \
         ORDER BY created_at COLLATE \"C\", \"index\", id COLLATE \"C\""
    ))
}

#[test]
fn statement_12_finds_the_nodes_of_a_run() {
    let dify = Migrated::shared();
    let whose = some_run(&dify);
    let [tenant, app, run] = &whose;
    let twin = nodes_of_run(&dify, &whose);
    assert!(twin.len() > 10, "{}", twin.len());
    let sql = readers::nodes_of_run(tenant, app, run);
    same_set(dify.sls_plain(NODES, &sql), twin.clone());
    let query =
        format!("tenant_id:\"{tenant}\" and app_id:\"{app}\" and workflow_run_id:\"{run}\"");
    same_set(dify.search(NODES, &query), twin);
    // Dify asks for 1,000 logs; a page has 100.
    let body = json!({"query": query, "line": 1000});
    let message = Asking(&dify.fixture.sls).get_logs_v3(NODES, body).refused();
    assert_eq!(message, "line must be at most 100");
}

#[test]
fn statement_12_in_pages_is_refused_for_its_offset() {
    let dify = Migrated::shared();
    let [tenant, app, run] = some_run(&dify);
    let sql = format!(
        "
                    SELECT * FROM (
                        SELECT *, ROW_NUMBER() OVER (PARTITION BY id ORDER BY log_version DESC) AS rn
                        FROM \"workflow_node_execution\"
                        WHERE tenant_id = '{tenant}' AND app_id = '{app}' AND workflow_run_id = '{run}' \
                        AND (triggered_from IS NULL OR triggered_from != 'workflow-tool') \
                        AND __time__ > 0
                    ) AS executions WHERE rn = 1 ORDER BY created_at, \"index\", id LIMIT 1000 OFFSET 0
                "
    );
    let body = json!({"query": format!("* | {sql}")});
    let message = Asking(&dify.fixture.sls).get_logs_v3(NODES, body).refused();
    assert!(message.contains("mismatched input 'OFFSET'"), "{message}");
}

#[test]
fn statement_13_finds_a_node_by_id() {
    let dify = Migrated::shared();
    let id = dify.value("SELECT max(id) FROM node_log");
    let twin = dify.twin(&format!("SELECT {FIELDS} FROM node_log WHERE id = '{id}'"));
    let tenant = &twin[0]["tenant_id"];
    for condition in [format!("id = '{id}'"), format!("id = '{id}' AND tenant_id = '{tenant}'")] {
        let window = format!(
            "SELECT * FROM (
                            SELECT *, ROW_NUMBER() OVER (PARTITION BY id ORDER BY log_version DESC) AS rn
                            FROM \"workflow_node_execution\"
                            WHERE {condition}
                              AND __time__ > 0
                        ) AS subquery WHERE rn = 1
                        LIMIT 1"
        );
        same_rows(&dify.sls_plain(NODES, &window), &twin);
        let newest = format!(
            "
                SELECT * FROM \"workflow_node_execution\"
                WHERE {condition} AND __time__ > 0
                ORDER BY log_version DESC LIMIT 1
            "
        );
        same_rows(&dify.sls(NODES, &format!("id: \"{id}\""), &newest), &twin);
    }
    let query = format!("id:\"{id}\" and tenant_id:\"{tenant}\"");
    same_rows(&dify.search(NODES, &query), &twin);
}

#[test]
fn statement_14_finds_the_newest_of_each_node_execution() {
    let dify = Migrated::shared();
    // A run with a node that was tried again: rows that share its node_execution_id.
    let retried = dify.value(
        "SELECT tenant_id, app_id, workflow_run_id FROM node_log WHERE workflow_run_id <> '' \
         GROUP BY 1, 2, 3 HAVING count(*) > count(DISTINCT node_execution_id) \
         ORDER BY count(*) DESC, 3 LIMIT 1",
    );
    let [tenant, app, run]: [&str; 3] =
        retried.split('|').collect::<Vec<_>>().try_into().expect("a run with a retry");
    let of_run =
        format!("workflow_run_id='{run}'\n  AND tenant_id='{tenant}'\n  AND app_id='{app}'");
    let finished =
        format!("SELECT * FROM workflow_node_execution WHERE {of_run} AND finished_at IS NOT NULL");
    let twin = dify.twin(&format!("SELECT {FIELDS} FROM node_log WHERE {of_run}"));
    same_set(dify.sls(NODES, "*", &finished), twin.clone());
    let window = format!(
        "
            SELECT * FROM (
                SELECT *, ROW_NUMBER() OVER (PARTITION BY node_execution_id ORDER BY log_version DESC) AS rn
                FROM workflow_node_execution
                WHERE {of_run}
                  AND __time__ > 0
            ) t
            WHERE rn = 1
        "
    );
    let newest = dify.twin(&format!(
        "SELECT DISTINCT ON (node_execution_id) {FIELDS} FROM node_log WHERE {of_run} \
         ORDER BY node_execution_id, ended DESC, status = 'retry'"
    ));
    assert!(newest.len() < twin.len());
    same_set(dify.sls(NODES, "*", &window), newest);
    let ordered = format!("{window} ORDER BY \"index\" DESC, created_at DESC, id DESC");
    let newest = dify.twin(&format!(
        "SELECT * FROM (SELECT DISTINCT ON (node_execution_id) {FIELDS} FROM node_log \
         WHERE {of_run} ORDER BY node_execution_id, ended DESC, status = 'retry') t \
         ORDER BY \"index\" DESC, created_at COLLATE \"C\" DESC, id COLLATE \"C\" DESC"
    ));
    same_rows(&dify.sls(NODES, "*", &ordered), &newest);
}

/// `LogstoreWorkflowNodeExecutionRepository.get_by_workflow_execution` with the order that Dify's
/// run details ask for: the fields' names as they are, unquoted.
#[test]
fn statement_14_orders_the_nodes_of_a_run_by_an_unquoted_index() {
    let dify = Migrated::shared();
    let whose = some_run(&dify);
    let [tenant, app, run] = &whose;
    let of_run = format!("workflow_run_id='{run}' AND tenant_id='{tenant}' AND app_id='{app}'");
    for (order, twin) in [
        (TRACE_ORDER, "\"index\", created_at COLLATE \"C\", node_execution_id COLLATE \"C\""),
        (
            "index DESC, created_at DESC",
            "\"index\" DESC, created_at COLLATE \"C\" DESC, node_execution_id COLLATE \"C\"",
        ),
    ] {
        let sql = readers::trace_of_run(tenant, app, run, order);
        let newest = dify.twin(&format!(
            "SELECT * FROM (SELECT DISTINCT ON (node_execution_id) {FIELDS} FROM node_log \
             WHERE {of_run} ORDER BY node_execution_id, ended DESC, status = 'retry') t \
             ORDER BY {twin}"
        ));
        assert!(newest.len() > 10, "{}", newest.len());
        let in_order = |rows: &[Row]| -> Vec<(String, String)> {
            rows.iter().map(|row| (row["index"].clone(), row["created_at"].clone())).collect()
        };
        let sls = dify.sls(NODES, "*", &sql);
        assert_eq!(in_order(&sls), in_order(&newest));
        same_set(sls, newest);
    }
}
