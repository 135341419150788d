//! What Dify's readers ask SLS: their statements, letter by letter but for the line breaks.
//!
//! The functions without a prefix are those of its versions 1.11.2 to 1.14.2
//! (`api/extensions/logstore/repositories`); [`newest`] has those of the readers that follow them
//! (`api/repositories/workflow/logstore`), which choose the newest log of each id first.
//!
//! Values are put between quotes as Dify does: a quote in one of them is doubled.

pub mod newest;

/// Whose runs or node executions are asked about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    pub tenant: String,
    pub app: String,
    /// How the runs were started; statistics are asked for each.
    pub trigger: String,
}

impl Owner {
    fn of_app(&self) -> String {
        format!("tenant_id='{}' AND app_id='{}'", escaped(&self.tenant), escaped(&self.app))
    }

    fn of_trigger(&self) -> String {
        format!("{} AND triggered_from='{}'", self.of_app(), escaped(&self.trigger))
    }
}

/// A value between single quotes.
pub fn escaped(value: &str) -> String {
    value.replace('\'', "''")
}

/// Statement 1: the list of runs, in no order: `created_at` is not in a run's log.
pub fn list(owner: &Owner, status: Option<&str>, limit: u32) -> String {
    let status = status.map_or(String::new(), |status| format!("AND status='{}'", escaped(status)));
    format!(
        "
            SELECT * FROM (
                SELECT *, ROW_NUMBER() OVER (PARTITION BY id ORDER BY log_version DESC) AS rn
                FROM workflow_execution
                WHERE tenant_id='{}'
                  AND app_id='{}'
                  AND (triggered_from='{}')
                  {status}
                  \u{20}
            ) t
            WHERE rn = 1
            ORDER BY created_at DESC
            LIMIT {limit}
        ",
        escaped(&owner.tenant),
        escaped(&owner.app),
        escaped(&owner.trigger)
    )
}

/// Statement 2 as a search: a run by id, tenant and app.
pub fn run_search(owner: &Owner, id: &str) -> String {
    format!("id:\"{id}\" and tenant_id:\"{}\" and app_id:\"{}\"", owner.tenant, owner.app)
}

/// Statement 3: a run by id alone.
pub fn run_by_id(id: &str) -> String {
    format!(
        "
                    SELECT * FROM (
                        SELECT *,
                            ROW_NUMBER() OVER (PARTITION BY id ORDER BY log_version DESC) as rn
                        FROM \"workflow_execution\"
                        WHERE id = '{}' AND __time__ > 0
                    ) AS subquery WHERE rn = 1
                    LIMIT 100
                ",
        escaped(id)
    )
}

/// Statement 5: how many runs are running; counts every run that has ever logged that.
pub fn count_running(owner: &Owner) -> String {
    format!(
        "
                SELECT COUNT(*) as count
                FROM (
                    SELECT *, ROW_NUMBER() OVER (PARTITION BY id ORDER BY log_version DESC) AS rn
                    FROM workflow_execution
                    WHERE {}
                      AND status='running'
                      \u{20}
                ) t
                WHERE rn = 1
            ",
        owner.of_trigger()
    )
}

/// Statement 4: how many runs have a status other than `running`.
pub fn count_status(owner: &Owner, status: &str) -> String {
    format!(
        "
                    SELECT COUNT(DISTINCT id) as count
                    FROM workflow_execution
                    WHERE {}
                      AND status='{}'
                      AND finished_at IS NOT NULL
                      \u{20}
                ",
        owner.of_trigger(),
        escaped(status)
    )
}

/// Statement 6: how many runs have each status.
pub fn count_by_status(owner: &Owner) -> String {
    format!(
        "
                SELECT status, COUNT(DISTINCT id) as count
                FROM workflow_execution
                WHERE {}
                  AND finished_at IS NOT NULL
                  \u{20}
                GROUP BY status
            ",
        owner.of_trigger()
    )
}

/// What statements 7 to 9 give for each day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daily {
    Runs,
    Terminals,
    /// Every log is counted, so a run that is there twice counts twice.
    Tokens,
}

impl Daily {
    /// The column of the answer.
    pub fn column(self) -> &'static str {
        match self {
            Self::Runs => "runs",
            Self::Terminals => "terminal_count",
            Self::Tokens => "token_count",
        }
    }

    fn wanted(self) -> &'static str {
        match self {
            Self::Runs => "COUNT(DISTINCT id) as runs",
            Self::Terminals => "COUNT(DISTINCT created_by) as terminal_count",
            Self::Tokens => "SUM(total_tokens) as token_count",
        }
    }
}

/// Statements 7 to 9: a number for each day; `filter`: more conditions, beginning with ` AND`.
pub fn daily(owner: &Owner, daily: Daily, filter: &str) -> String {
    format!(
        "
            SELECT DATE(from_unixtime(__time__)) as date, {}
            FROM workflow_execution
            WHERE {}
              AND finished_at IS NOT NULL
              {filter}
            GROUP BY date
            ORDER BY date
        ",
        daily.wanted(),
        owner.of_trigger()
    )
}

/// Statement 10: how many runs a user of each day has had.
pub fn average_interactions(owner: &Owner) -> String {
    format!(
        "
            SELECT
                AVG(sub.interactions) AS interactions,
                sub.date
            FROM (
                SELECT
                    DATE(from_unixtime(__time__)) AS date,
                    created_by,
                    COUNT(DISTINCT id) AS interactions
                FROM workflow_execution
                WHERE {}
                  AND finished_at IS NOT NULL
                  \u{20}
                GROUP BY date, created_by
            ) sub
            GROUP BY sub.date
        ",
        owner.of_trigger()
    )
}

/// A node of a workflow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    pub workflow: String,
    pub node: String,
}

/// Statement 11, as its newest form asks: the last execution of a node.
pub fn last_of_node(owner: &Owner, node: &Node) -> String {
    format!(
        "
                SELECT * FROM (
                    SELECT *, ROW_NUMBER() OVER (PARTITION BY id ORDER BY log_version DESC) AS rn
                    FROM \"workflow_node_execution\"
                    WHERE tenant_id = '{}' AND app_id = '{}' AND workflow_id = '{}' AND node_id = '{}' AND __time__ > 0
                ) AS executions WHERE rn = 1
                  AND (triggered_from IS NULL
                       OR triggered_from != 'workflow-tool')
                  AND (status IS NULL OR status != 'paused')
                ORDER BY created_at DESC LIMIT 1
            ",
        escaped(&owner.tenant),
        escaped(&owner.app),
        escaped(&node.workflow),
        escaped(&node.node)
    )
}

/// Statement 12: the nodes of a run.
pub fn nodes_of_run(tenant: &str, app: &str, run: &str) -> String {
    format!(
        "
                    SELECT * FROM (
                        SELECT *, ROW_NUMBER() OVER (PARTITION BY id ORDER BY log_version DESC) AS rn
                        FROM \"workflow_node_execution\"
                        WHERE tenant_id = '{}'
                          AND app_id = '{}'
                          AND workflow_run_id = '{}'
                          AND __time__ > 0
                    ) AS subquery WHERE rn = 1
                    LIMIT 1000
                ",
        escaped(tenant),
        escaped(app),
        escaped(run)
    )
}

/// Statement 14: the trace of a run, the newest log of each `node_execution_id`; in the order that
/// Dify's run details ask for, or any other, in the fields' own names. Without LIMIT, so that SLS
/// gives at most 100 rows.
pub fn trace_of_run(tenant: &str, app: &str, run: &str, order: &str) -> String {
    format!(
        "
            SELECT * FROM (
                SELECT *, ROW_NUMBER() OVER (PARTITION BY node_execution_id ORDER BY log_version DESC) AS rn
                FROM workflow_node_execution
                WHERE workflow_run_id='{}' AND tenant_id='{}' AND app_id='{}'
                  AND __time__ > 0
            ) t
            WHERE rn = 1
             ORDER BY {order}",
        escaped(run),
        escaped(tenant),
        escaped(app)
    )
}

/// The order of a run's details.
pub const TRACE_ORDER: &str = "index ASC, created_at ASC";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_in_a_value_ends_no_text() {
        let owner = Owner {
            tenant: "t".to_owned(),
            app: "a".to_owned(),
            trigger: "x' OR '1'='1".to_owned(),
        };
        let sql = daily(&owner, Daily::Runs, "");
        assert!(sql.contains("triggered_from='x'' OR ''1''=''1'"), "{sql}");
    }
}
