//! What the source's tables look like: columns in their order, and which key orders their indexes
//! allow. Every version of Dify has its own shape; nothing is assumed but the two tables' names.

use anyhow::Context as _;
use sqlx::{Postgres, Row as _, Transaction};

use crate::pg;
use crate::record::key::KeyOrder;
use crate::record::table::{Column, ColumnKind, Table};
use crate::source::Source;

/// A table as it was found.
#[derive(Debug, Clone)]
pub struct Shape {
    pub table: Table,
    /// In physical order.
    pub columns: Vec<Column>,
    /// The key orders that indexes allow, the best first; `Walk` is always there.
    pub orders: Vec<KeyOrder>,
    /// Whether this database has `workflow_node_execution_offload` (since Dify 1.9).
    pub has_offload: bool,
    /// Postgres's estimate of the number of rows; 0 before the first ANALYZE.
    pub rows_estimated: i64,
}

impl Shape {
    /// Whether the table has that column.
    pub fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|found| found.name == column)
    }
}

impl Source {
    /// Looks at `table`; `None` when the database has no such table. Fails, with a hint, when it
    /// may not be read.
    pub async fn shape(&self, table: Table) -> anyhow::Result<Option<Shape>> {
        let mut tx = self.begin().await?;
        let columns = columns(&mut tx, table).await?;
        if columns.is_empty() {
            return Ok(None);
        }
        let time = has_index(&mut tx, table.name(), &["created_at", "id"]).await?;
        let mut orders = Vec::new();
        if time {
            orders.push(KeyOrder::Time);
        }
        if table == Table::NodeExecutions
            && has_index(&mut tx, table.name(), &["workflow_run_id"]).await?
            && has_index(&mut tx, Table::Runs.name(), &["created_at", "id"]).await?
        {
            orders.push(KeyOrder::ByRun);
        }
        orders.push(KeyOrder::Walk);
        let row = pg::statement(
            "SELECT o.oid IS NOT NULL AS offload, greatest(c.reltuples, 0)::int8 AS rows, \
             coalesce(has_table_privilege(o.oid, 'SELECT'), true) AND NOT EXISTS \
               (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 \
                AND NOT a.attisdropped AND NOT has_column_privilege(c.oid, a.attnum, 'SELECT')) \
               AS readable \
             FROM pg_class c LEFT JOIN pg_class o \
               ON o.oid = to_regclass('public.workflow_node_execution_offload') \
             WHERE c.oid = ('public.' || quote_ident($1))::regclass",
        )
        .bind(table.name())
        .fetch_one(&mut *tx)
        .await
        .with_context(|| format!("look at table {table}"))?;
        anyhow::ensure!(
            row.try_get::<bool, _>("readable")?,
            "this user may not read table {table}, or workflow_node_execution_offload\n\
             nothing was done\nhint: GRANT SELECT ON workflow_runs, workflow_node_executions, \
             workflow_node_execution_offload"
        );
        Ok(Some(Shape {
            table,
            columns,
            orders,
            has_offload: table == Table::NodeExecutions && row.try_get::<bool, _>("offload")?,
            rows_estimated: row.try_get("rows")?,
        }))
    }
}

async fn columns(
    tx: &mut Transaction<'static, Postgres>,
    table: Table,
) -> anyhow::Result<Vec<Column>> {
    let rows = pg::statement(
        "SELECT a.attname::text AS name, format_type(a.atttypid, NULL) AS type \
         FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid \
         JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = 'public' AND c.relname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f') \
         AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
    )
    .bind(table.name())
    .fetch_all(&mut **tx)
    .await
    .with_context(|| format!("read the columns of {table}"))?;
    rows.iter()
        .map(|row| {
            let kind = match row.try_get::<&str, _>("type")? {
                "uuid" => ColumnKind::Uuid,
                "integer" => ColumnKind::Int4,
                "bigint" => ColumnKind::Int8,
                "double precision" => ColumnKind::Float8,
                "timestamp without time zone" => ColumnKind::Timestamp,
                _ => ColumnKind::Text,
            };
            Ok(Column { name: row.try_get("name")?, kind })
        })
        .collect()
}

/// Whether a valid, complete B-tree index of `table` begins with exactly these columns, ascending.
pub(in crate::source) async fn has_index(
    tx: &mut Transaction<'static, Postgres>,
    table: &str,
    columns: &[&str],
) -> anyhow::Result<bool> {
    let row = pg::statement(
        "SELECT EXISTS (SELECT FROM pg_index i \
           JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
           JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am am ON am.oid = x.relam \
         WHERE n.nspname = 'public' AND c.relname = $1 AND am.amname = 'btree' \
           AND i.indisvalid AND i.indpred IS NULL \
           AND ARRAY(SELECT pg_get_indexdef(i.indexrelid, k, true) \
                     FROM generate_series(1, cardinality($2::text[])) AS k) = $2::text[] \
           AND NOT EXISTS (SELECT FROM generate_series(0, cardinality($2::text[]) - 1) AS k \
                           WHERE i.indoption[k] <> 0)) AS found",
    )
    .bind(table)
    .bind(columns.iter().map(|column| (*column).to_owned()).collect::<Vec<_>>())
    .fetch_one(&mut **tx)
    .await
    .with_context(|| format!("read the indexes of {table}"))?;
    Ok(row.try_get("found")?)
}
