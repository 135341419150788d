//! Cuts a pass's key space into ranges by walking the key index, and counts what a range holds.

use anyhow::Context as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::pg;
use crate::record::key::{Key, KeyOrder};
use crate::record::table::Table;
use crate::source::Source;
use crate::source::scope::{Scope, Span, Sql, push_window};

impl Source {
    /// The key that ends the next range of about `step` index entries behind `after`; `None` when
    /// less is left, so that the range is the last one.
    ///
    /// Walks index entries, not rows: the filter on tenant and app is left out, and with `ByRun`
    /// the entries are runs.
    pub async fn next_cut(
        &self,
        scope: &Scope,
        after: Key,
        step: u32,
    ) -> anyhow::Result<Option<Key>> {
        let table = if scope.order == KeyOrder::ByRun { Table::Runs } else { scope.table };
        let mut sql = Sql::new("");
        match scope.order {
            KeyOrder::Time | KeyOrder::ByRun => {
                let since = match scope.order {
                    KeyOrder::ByRun => scope.runs_since(),
                    _ => scope.since,
                };
                sql.push("SELECT created_at AS at, id FROM ");
                sql.push(&pg::in_public(table.name()));
                sql.push(" WHERE true");
                push_window(&mut sql, "created_at", since, scope.until);
                if after != Key::START {
                    let (at, id) = (sql.time(after.at), sql.id(after.id));
                    sql.push(&format!(" AND (created_at, id) > ({at}, {id})"));
                }
                sql.push(" ORDER BY created_at, id");
            }
            KeyOrder::Walk | KeyOrder::Rest => {
                sql.push("SELECT '-infinity'::timestamp AS at, id FROM ");
                sql.push(&pg::in_public(table.name()));
                if after != Key::START {
                    let id = sql.id(after.id);
                    sql.push(&format!(" WHERE id > {id}"));
                }
                sql.push(" ORDER BY id");
            }
        }
        let skip = sql.int(i64::from(step) - 1);
        sql.push(&format!(" LIMIT 1 OFFSET {skip}"));
        let mut tx = self.begin_on_indexes().await?;
        let row = sql
            .query()
            .fetch_optional(&mut *tx)
            .await
            .with_context(|| format!("cut {table} into ranges"))?;
        row.map(|row| {
            let key = Key::time(row.try_get("at")?, row.try_get("id")?);
            // The range ends behind all nodes of its last run, so the next one must not begin
            // with them.
            let behind_its_nodes = Key { node: Uuid::max(), ..key };
            Ok(if scope.order == KeyOrder::ByRun { behind_its_nodes } else { key })
        })
        .transpose()
    }

    /// How many rows of `scope` lie in `span`, counted by one statement of its own: a check of the
    /// page-by-page reading.
    pub async fn count(&self, scope: &Scope, span: &Span) -> anyhow::Result<u64> {
        let mut sql = Sql::new("SELECT count(*) AS rows");
        scope.push_from(&mut sql, span);
        let mut tx = self.begin_on_indexes().await?;
        let row = sql
            .query()
            .fetch_one(&mut *tx)
            .await
            .with_context(|| format!("count the rows of a range of {}", scope.table))?;
        Ok(u64::try_from(row.try_get::<i64, _>("rows")?)?)
    }
}
