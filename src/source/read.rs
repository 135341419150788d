//! The second look: exactly the rows of one batch, every column, straight into the caller's hands.

use anyhow::Context as _;
use futures::TryStreamExt as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::pg::{self, Tx};
use crate::record::table::{Cells, Column, ColumnKind, Table};
use crate::source::Source;

/// More columns than any Dify has; a table with more is refused when its columns are looked at.
pub const COLUMNS_MAX: usize = 96;

impl Source {
    /// Calls `each` with the cells of every row of `ids` that is still there, in no order.
    ///
    /// Cells are in the order of `columns` and in the form that their [`ColumnKind`] says; they
    /// are borrowed from the connection's buffer.
    pub async fn read(
        &self,
        table: Table,
        columns: &[Column],
        ids: &[Uuid],
        mut each: impl FnMut(&Cells<'_>),
    ) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        read_cells(&mut tx, table, columns, ids, &mut each).await
    }
}

/// The same within a transaction.
pub(in crate::source) async fn read_cells(
    tx: &mut Tx,
    table: Table,
    columns: &[Column],
    ids: &[Uuid],
    each: &mut impl FnMut(&Cells<'_>),
) -> anyhow::Result<()> {
    anyhow::ensure!(columns.len() <= COLUMNS_MAX, "{table} has over {COLUMNS_MAX} columns");
    let list: Vec<_> = columns
        .iter()
        .map(|column| match column.kind {
            // Also varchar, and types that we do not know.
            ColumnKind::Text => format!("t.{}::text", pg::quote(&column.name)),
            _ => format!("t.{}", pg::quote(&column.name)),
        })
        .collect();
    let sql = format!(
        "SELECT {} FROM {} t WHERE t.id = ANY($1)",
        list.join(", "),
        pg::in_public(table.name()),
    );
    let mut rows = pg::made_statement(&sql).bind(ids.to_vec()).fetch(&mut **tx);
    let context = || format!("read {} rows of {table}", ids.len());
    while let Some(row) = rows.try_next().await.with_context(context)? {
        let mut cells = [None; COLUMNS_MAX];
        for (index, cell) in cells[..columns.len()].iter_mut().enumerate() {
            // An error here is NULL, and nothing else.
            *cell = row.try_get_raw(index)?.as_bytes().ok();
        }
        each(&cells[..columns.len()]);
    }
    Ok(())
}
