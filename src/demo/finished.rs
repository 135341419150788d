//! Which rows of the history a backfill must bring to SLS, asked of Postgres by its own words.

use anyhow::Context as _;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use crate::pg;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// The ids of all rows that are terminal and finished at `settled_before` or earlier.
pub async fn finished(
    conn: &mut PgConnection,
    table: Table,
    settled_before: Timestamp,
) -> anyhow::Result<Vec<Uuid>> {
    let sql = match table {
        Table::Runs => {
            "SELECT id FROM workflow_runs WHERE finished_at <= $1 \
             AND status IN ('succeeded', 'failed', 'stopped', 'partial-succeeded')"
        }
        Table::NodeExecutions => {
            "SELECT id FROM workflow_node_executions WHERE finished_at <= $1 \
             AND status IN ('succeeded', 'failed', 'stopped', 'exception', 'retry')"
        }
    };
    let rows = pg::statement(sql)
        .bind(settled_before)
        .fetch_all(conn)
        .await
        .with_context(|| format!("list the finished rows of {table}"))?;
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}

/// Those of the finished rows that a purge had no reason to leave: node executions stay as long as
/// their run goes on.
pub async fn finished_with_their_run(
    conn: &mut PgConnection,
    table: Table,
    settled_before: Timestamp,
) -> anyhow::Result<Vec<Uuid>> {
    let left = finished(conn, table, settled_before).await?;
    if table == Table::Runs {
        return Ok(left);
    }
    let rows = pg::statement(
        "SELECT id FROM workflow_node_executions n WHERE id = ANY($1) \
         AND NOT EXISTS (SELECT FROM workflow_runs r WHERE r.id = n.workflow_run_id)",
    )
    .bind(left)
    .fetch_all(conn)
    .await
    .with_context(|| format!("list the finished rows of {table} whose run is gone"))?;
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}
