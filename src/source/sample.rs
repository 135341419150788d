//! A look at a part of a table that stands for all of it: pages chosen by chance, or slice by slice.

use anyhow::Context as _;
use sqlx::Row as _;

use crate::pg;
use crate::record::key::KeyOrder;
use crate::record::table::Table;
use crate::source::Source;
use crate::source::catalog::Shape;
use crate::source::count_days::{Slice, push_slice};
use crate::source::page::{Head, head, select_heads};
use crate::source::scope::Scope;

/// How large a table is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    /// Pages of 8 KiB, as many as there are now, whenever it was analysed.
    pub pages: u64,
    /// Whether pages can be chosen: not of a view or a foreign table.
    pub is_plain: bool,
}

/// Which rows to look at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Part {
    /// Pages chosen by chance, so many percent of them; the same seed chooses the same pages.
    Chance {
        percent: f64,
        seed: u32,
    },
    Slice(Slice),
}

/// A row that stands for others.
#[derive(Debug, Clone)]
pub struct SampledHead {
    pub head: Head,
    /// The page it lies on.
    pub page: i64,
    /// Whether no run reaches it: a node that was tried by itself.
    pub is_single: bool,
}

impl Source {
    pub async fn pages(&self, table: Table) -> anyhow::Result<Pages> {
        let mut tx = self.begin().await?;
        let row = pg::statement(
            "SELECT pg_relation_size(c.oid) / current_setting('block_size')::int8 AS pages, \
             c.relkind = 'r' AS plain FROM pg_class c \
             WHERE c.oid = ('public.' || quote_ident($1))::regclass",
        )
        .bind(table.name())
        .fetch_one(&mut *tx)
        .await
        .with_context(|| format!("look how large {table} is"))?;
        Ok(Pages {
            pages: u64::try_from(row.try_get::<i64, _>("pages")?)?,
            is_plain: row.try_get("plain")?,
        })
    }

    /// The rows of that part of the scope's table that are in its window and of its owner, as far as
    /// they can be judged without their payload.
    pub async fn sample(
        &self,
        scope: &Scope,
        shape: &Shape,
        part: Part,
    ) -> anyhow::Result<Vec<SampledHead>> {
        let mut sql = select_heads(shape, KeyOrder::Walk);
        sql.push(match shape.table {
            Table::Runs => ", false AS single",
            Table::NodeExecutions => ", t.workflow_run_id IS NULL AS single",
        });
        match part {
            Part::Chance { percent, seed } => {
                let table = pg::in_public(scope.table.name());
                sql.push(&format!(
                    ", (t.ctid::text::point)[0]::int8 AS page FROM {table} t \
                     TABLESAMPLE SYSTEM ({percent:.6}) REPEATABLE ({seed}) WHERE true"
                ));
            }
            Part::Slice(slice) => {
                sql.push(match slice {
                    Slice::Blocks { .. } => ", (t.ctid::text::point)[0]::int8 AS page",
                    Slice::Ids { .. } => ", 0::int8 AS page",
                });
                push_slice(&mut sql, scope.table, slice);
            }
        }
        scope.push_rows(&mut sql);
        let mut tx = self.begin().await?;
        let rows = sql.query().fetch_all(&mut *tx).await;
        let rows = rows.with_context(|| format!("look at a part of {}", scope.table))?;
        rows.iter()
            .map(|row| {
                Ok(SampledHead {
                    head: head(row, KeyOrder::Walk)?,
                    page: row.try_get("page")?,
                    is_single: row.try_get("single")?,
                })
            })
            .collect()
    }
}
