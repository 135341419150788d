//! The statements of Dify's readers from July 2026 on: the newest log of each id is chosen first,
//! and all that is asked is asked of these.

use crate::dify::readers::{Node, Owner, escaped};

/// Their time of a run, in SLS's words.
pub const CREATED_AT: &str =
    "to_unixtime(from_iso8601_timestamp(COALESCE(NULLIF(created_at, ''), started_at)))";

const RUNS: &str = "workflow_execution";
const NODES: &str = "workflow_node_execution";

/// The newest log of each id, with these values of these fields.
pub fn latest(logstore: &str, owner: &[(&str, &str)]) -> String {
    let conditions: Vec<_> =
        owner.iter().map(|(name, value)| format!("\"{name}\" = '{}'", escaped(value))).collect();
    format!(
        "
        SELECT * FROM (
            SELECT *, ROW_NUMBER() OVER (PARTITION BY id ORDER BY log_version DESC) AS _version_rank
            FROM \"{logstore}\" WHERE __time__ > 0 AND {}
        ) versions WHERE _version_rank = 1
    ",
        conditions.join(" AND ")
    )
}

fn latest_runs(owner: &Owner) -> String {
    let owner = [
        ("tenant_id", owner.tenant.as_str()),
        ("app_id", &owner.app),
        ("triggered_from", &owner.trigger),
    ];
    latest(RUNS, &owner)
}

/// The list of runs, the newest first.
pub fn list(owner: &Owner, limit: u32) -> String {
    let current =
        latest(RUNS, &[("tenant_id", owner.tenant.as_str()), ("app_id", owner.app.as_str())]);
    let trigger = escaped(&owner.trigger);
    format!(
        "SELECT * FROM ({current}) current_runs WHERE triggered_from IN ('{trigger}') \
         ORDER BY {CREATED_AT} DESC, id DESC LIMIT {limit}"
    )
}

/// A run by id, tenant and app.
pub fn run(owner: &Owner, id: &str) -> String {
    let owner = [("tenant_id", owner.tenant.as_str()), ("app_id", &owner.app), ("id", id)];
    format!("{} LIMIT 1", latest(RUNS, &owner))
}

/// How many runs have each status.
pub fn count_by_status(owner: &Owner) -> String {
    let current = latest_runs(owner);
    format!("SELECT status, COUNT(*) AS count FROM ({current}) current_runs GROUP BY status")
}

/// The runs with their day in that time zone.
pub fn with_day(owner: &Owner, zone: &str, bounds: &str) -> String {
    let date = format!("date_format(from_unixtime({CREATED_AT}, '{zone}'), '%Y-%m-%d')");
    let current = latest_runs(owner);
    format!("SELECT *, {date} AS run_date FROM ({current}) current_runs WHERE {bounds}")
}

/// The statistics by day: each gives its column for every `date`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daily {
    Runs,
    Terminals,
    Tokens,
    Interactions,
}

impl Daily {
    /// The column of the answer.
    pub fn column(self) -> &'static str {
        match self {
            Self::Runs => "runs",
            Self::Terminals => "terminal_count",
            Self::Tokens => "token_count",
            Self::Interactions => "interactions",
        }
    }
}

/// A number for each day of `source`, which [`with_day`] makes.
pub fn daily(source: &str, daily: Daily) -> String {
    let wanted = match daily {
        Daily::Runs => "COUNT(*) AS runs",
        Daily::Terminals => "COUNT(DISTINCT created_by) AS terminal_count",
        Daily::Tokens => "SUM(total_tokens) AS token_count",
        Daily::Interactions => {
            return format!(
                "
                SELECT run_date AS date, ROUND(AVG(interactions), 2) AS interactions
                FROM (
                    SELECT run_date, created_by, COUNT(*) AS interactions
                    FROM ({source}) runs GROUP BY run_date, created_by
                ) per_actor GROUP BY run_date ORDER BY run_date
            "
            );
        }
    };
    format!(
        "SELECT run_date AS date, {wanted} FROM ({source}) runs \
         GROUP BY run_date ORDER BY run_date"
    )
}

/// The nodes of a run, a page of them.
pub fn nodes_of_run(tenant: &str, app: &str, run: &str, offset: usize, count: usize) -> String {
    let owner = [("tenant_id", tenant), ("app_id", app), ("workflow_run_id", run)];
    format!(
        "SELECT * FROM ({}) nodes ORDER BY created_at ASC, \"index\" ASC, id ASC \
         LIMIT {offset}, {count}",
        latest(NODES, &owner)
    )
}

/// The last execution of a node.
pub fn last_of_node(owner: &Owner, node: &Node) -> String {
    let owner = [
        ("tenant_id", owner.tenant.as_str()),
        ("app_id", &owner.app),
        ("workflow_id", &node.workflow),
        ("node_id", &node.node),
    ];
    format!(
        "SELECT * FROM ({}) nodes WHERE status != 'paused' ORDER BY created_at DESC, id DESC LIMIT 1",
        latest(NODES, &owner)
    )
}
