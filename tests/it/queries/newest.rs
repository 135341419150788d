//! What Dify's readers ask from July 2026 on (`api/repositories/workflow/logstore`).
//!
//! They choose the newest log of each id first and filter that.

use dify_sls_backfill::dify::readers::newest::{self, CREATED_AT, Daily, latest};
use dify_sls_backfill::dify::readers::{Node, Owner};

use crate::queries::asking::{Migrated, NODES, RUNS, Row, same_rows};
use crate::queries::nodes::{self, FIELDS, nodes_of_run, some_node};

/// A zone in which days differ from those of UTC.
const ZONE: &str = "Asia/Shanghai";

fn latest_of_app(dify: &Migrated) -> String {
    latest(RUNS, &[("tenant_id", &dify.tenant), ("app_id", &dify.app)])
}

fn latest_of_trigger(dify: &Migrated) -> String {
    let owner =
        [("tenant_id", &*dify.tenant), ("app_id", &*dify.app), ("triggered_from", &*dify.trigger)];
    latest(RUNS, &owner)
}

#[test]
fn the_list_of_runs_is_ordered_and_goes_on_behind_a_run() {
    let dify = Migrated::shared();
    let current = latest_of_app(&dify);
    let page = |filter: &str, limit: usize| {
        let filters = format!("triggered_from IN ('{}'){filter}", dify.trigger);
        dify.sls(
            RUNS,
            "*",
            &format!(
                "SELECT * FROM ({current}) current_runs WHERE {filters} \
                 ORDER BY {CREATED_AT} DESC, id DESC LIMIT {limit}"
            ),
        )
    };
    // SQL's times have milliseconds.
    let twin = dify.twin(&format!(
        "SELECT id, status, started_at, finished_at, total_tokens, \
         extract(epoch FROM date_trunc('milliseconds', begun))::text AS created FROM run_log \
         WHERE {} ORDER BY date_trunc('milliseconds', begun) DESC, id COLLATE \"C\" DESC",
        dify.of_trigger()
    ));
    let without_time = |rows: &[Row]| -> Vec<Row> {
        let mut rows = rows.to_vec();
        rows.iter_mut().for_each(|row| drop(row.remove("created")));
        rows
    };
    same_rows(&page("", 21), &without_time(&twin[..21]));
    same_rows(&dify.sls(RUNS, "*", &newest::list(&dify.owner(), 21)), &page("", 21));
    let (id, created) = (&twin[19]["id"], &twin[19]["created"]);
    let behind =
        format!(" AND ({CREATED_AT} < {created} OR ({CREATED_AT} = {created} AND id < '{id}'))");
    same_rows(&page(&behind, 21), &without_time(&twin[20..41]));
    same_rows(
        &page(" AND status = 'failed'", 5),
        &without_time(
            &twin
                .iter()
                .filter(|row| row["status"] == "failed")
                .take(5)
                .cloned()
                .collect::<Vec<_>>(),
        ),
    );
}

#[test]
fn a_run_is_found_by_id() {
    let dify = Migrated::shared();
    let id = dify.value(&format!("SELECT max(id) FROM run_log WHERE {}", dify.of_app()));
    let twin = dify.twin(&format!("SELECT * FROM run_log WHERE id = '{id}'"));
    let mut twin = twin;
    twin.iter_mut().for_each(|row| row.retain(|name, _| name != "begun" && name != "ended"));
    for owner in [
        vec![("tenant_id", &*dify.tenant), ("app_id", &dify.app), ("id", &id)],
        vec![("tenant_id", &dify.tenant), ("id", &id)],
        vec![("id", &id)],
    ] {
        same_rows(&dify.sls(RUNS, "*", &format!("{} LIMIT 1", latest(RUNS, &owner))), &twin);
    }
}

#[test]
fn runs_are_counted_by_status_since_a_time() {
    let dify = Migrated::shared();
    let since = 1_765_800_000.0;
    let mut sls = dify.sls(
        RUNS,
        "*",
        &format!(
            "SELECT status, COUNT(*) AS count FROM ({}) current_runs WHERE {CREATED_AT} >= {since:?} \
             GROUP BY status",
            latest_of_trigger(&dify)
        ),
    );
    sls.sort_by(|a, b| a["status"].cmp(&b["status"]));
    let twin = dify.twin(&format!(
        "SELECT status, count(*) FROM run_log WHERE {} AND extract(epoch FROM begun) >= {since:?} \
         GROUP BY status ORDER BY status COLLATE \"C\"",
        dify.of_trigger()
    ));
    same_rows(&sls, &twin);
}

/// Their statistics by day: `outer_twin` is what Postgres selects of its source, `{}` in it.
fn by_day(dify: &Migrated, wanted: Daily, outer_twin: &str) {
    let (start, end) = (1_765_000_000.0, 1_766_500_000.0);
    let bounds = format!("{CREATED_AT} >= {start:?} AND {CREATED_AT} < {end:?}");
    let bounds_twin =
        format!("extract(epoch FROM begun) >= {start:?} AND extract(epoch FROM begun) < {end:?}");
    for (bounds, bounds_twin) in [("1 = 1", "true"), (&*bounds, &*bounds_twin)] {
        let source = newest::with_day(&dify.owner(), ZONE, bounds);
        let source_twin = format!(
            "SELECT *, (begun AT TIME ZONE 'UTC' AT TIME ZONE '{ZONE}')::date AS run_date \
             FROM run_log WHERE {} AND {bounds_twin}",
            dify.of_trigger()
        );
        let sls = dify.sls(RUNS, "*", &newest::daily(&source, wanted));
        same_rows(&sls, &dify.twin(&outer_twin.replace("{}", &source_twin)));
    }
}

#[test]
fn runs_are_counted_by_day_of_a_time_zone() {
    by_day(
        &Migrated::shared(),
        Daily::Runs,
        "SELECT run_date AS date, count(*) AS runs FROM ({}) runs GROUP BY 1 ORDER BY 1",
    );
}

#[test]
fn users_are_counted_by_day_of_a_time_zone() {
    by_day(
        &Migrated::shared(),
        Daily::Terminals,
        "SELECT run_date AS date, count(DISTINCT created_by) AS terminal_count FROM ({}) runs \
         GROUP BY 1 ORDER BY 1",
    );
}

#[test]
fn tokens_are_summed_by_day_of_a_time_zone() {
    by_day(
        &Migrated::shared(),
        Daily::Tokens,
        "SELECT run_date AS date, sum(total_tokens) AS token_count FROM ({}) runs \
         GROUP BY 1 ORDER BY 1",
    );
}

#[test]
fn interactions_are_averaged_by_day_of_a_time_zone() {
    by_day(
        &Migrated::shared(),
        Daily::Interactions,
        "SELECT run_date AS date, round(avg(n), 2) AS interactions FROM (SELECT run_date, \
         created_by, count(*) AS n FROM ({}) runs GROUP BY 1, 2) t GROUP BY 1 ORDER BY 1",
    );
}

#[test]
fn the_last_execution_of_a_node_is_found() {
    let dify = Migrated::shared();
    let [tenant, app, workflow, node] = some_node(&dify);
    let owner = Owner { tenant: tenant.clone(), app: app.clone(), trigger: String::new() };
    let sql =
        newest::last_of_node(&owner, &Node { workflow: workflow.clone(), node: node.clone() });
    let twin = dify.twin(&format!(
        "SELECT {FIELDS} FROM node_log WHERE tenant_id = '{tenant}' AND app_id = '{app}' \
         AND workflow_id = '{workflow}' AND node_id = '{node}' ORDER BY begun DESC, id DESC LIMIT 1"
    ));
    same_rows(&dify.sls(NODES, "*", &sql), &twin);
}

#[test]
fn the_nodes_of_a_run_come_in_pages() {
    let dify = Migrated::shared();
    let whose = nodes::some_run(&dify);
    let [tenant, app, run] = &whose;
    let page = |offset: usize, count: usize| {
        dify.sls(NODES, "*", &newest::nodes_of_run(tenant, app, run, offset, count))
    };
    let twin = nodes_of_run(&dify, &whose);
    same_rows(&page(0, 1000), &twin);
    same_rows(&[page(0, 7), page(7, 1000)].concat(), &twin);
    assert_eq!(page(twin.len(), 1000), []);
}

#[test]
fn a_node_is_found_by_id() {
    let dify = Migrated::shared();
    let id = dify.value("SELECT min(id) FROM node_log");
    let twin = dify.twin(&format!("SELECT {FIELDS} FROM node_log WHERE id = '{id}'"));
    let tenant = &twin[0]["tenant_id"];
    for owner in [vec![("id", &*id)], vec![("id", &id), ("tenant_id", tenant)]] {
        same_rows(&dify.sls(NODES, "*", &format!("{} LIMIT 1", latest(NODES, &owner))), &twin);
    }
}
