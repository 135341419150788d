//! What the planner's statistics and the ends of indexes tell of a table, without reading it.

use anyhow::Context as _;
use sqlx::Row as _;

use crate::pg;
use crate::record::key::{Key, KeyOrder};
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::source::Source;
use crate::source::catalog::Shape;
use crate::source::scope::{Scope, Span, Sql};

/// So many pages are counted where there are no statistics.
const COUNTED_PAGES: u64 = 512;

impl Source {
    /// About how many rows `scope` has, whatever its order: the planner's guess.
    pub async fn rows_estimated(&self, scope: &Scope) -> anyhow::Result<u64> {
        let scope = Scope { order: KeyOrder::Walk, ..scope.clone() };
        let mut sql = Sql::new("EXPLAIN (FORMAT JSON) SELECT");
        scope.push_from(&mut sql, &Span { after: Key::START, upto: None });
        let mut tx = self.begin().await?;
        let row = sql
            .query()
            .fetch_one(&mut *tx)
            .await
            .with_context(|| format!("estimate the rows of {}", scope.table))?;
        let plan: serde_json::Value = row.try_get(0)?;
        Ok(plan[0]["Plan"]["Plan Rows"].as_u64().unwrap_or(0))
    }

    /// About how many rows `scope` has, also of a table that was never analysed: some of its pages,
    /// chosen by chance, are counted then.
    pub async fn rows_expected(&self, scope: &Scope, shape: &Shape) -> anyhow::Result<u64> {
        if shape.rows_estimated > 0 {
            return self.rows_estimated(scope).await;
        }
        let pages = self.pages(scope.table).await?;
        if !pages.is_plain || pages.pages == 0 {
            return Ok(0);
        }
        let percent = (100.0 * COUNTED_PAGES as f64 / pages.pages as f64).min(100.0);
        let table = pg::in_public(scope.table.name());
        let mut sql = Sql::new(format!(
            "SELECT count(*) FROM {table} t TABLESAMPLE SYSTEM ({percent:.6}) WHERE true"
        ));
        scope.push_rows(&mut sql);
        let mut tx = self.begin().await?;
        let row = sql.query().fetch_one(&mut *tx).await;
        let row = row.with_context(|| format!("count some rows of {}", scope.table))?;
        Ok((row.try_get::<i64, _>(0)? as f64 * 100.0 / percent) as u64)
    }

    /// About when the oldest row of the table was created; `None`: nobody knows without reading all
    /// of it, or it is empty. Node executions are as old as the runs.
    pub async fn oldest(&self, shape: &Shape) -> anyhow::Result<Option<Timestamp>> {
        let context = || format!("look for the oldest row of {}", shape.table);
        let indexed = match shape.orders.first() {
            Some(KeyOrder::Time) => Some(shape.table),
            Some(KeyOrder::ByRun) => Some(Table::Runs),
            _ => None,
        };
        let row = match indexed {
            Some(table) => {
                let sql = format!(
                    "SELECT created_at FROM {} ORDER BY created_at, id LIMIT 1",
                    pg::in_public(table.name())
                );
                let mut tx = self.begin_on_indexes().await?;
                pg::made_statement(&sql).fetch_optional(&mut *tx).await.with_context(context)?
            }
            None => {
                let mut tx = self.begin().await?;
                pg::statement(
                    "SELECT (histogram_bounds::text::timestamp[])[1] AS created_at FROM pg_stats \
                     WHERE schemaname = 'public' AND tablename = $1 AND attname = 'created_at'",
                )
                .bind(shape.table.name())
                .fetch_optional(&mut *tx)
                .await
                .with_context(context)?
            }
        };
        Ok(row.map(|row| row.try_get("created_at")).transpose()?.flatten())
    }
}
