//! The second look: exactly the rows of one batch, every column, straight into the caller's hands.

use anyhow::Context as _;
use futures::TryStreamExt as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::pg::{self, Tx};
use crate::record::table::{Cells, Column, ColumnKind, Table};
use crate::source::Source;
use crate::source::catalog::Shape;
use crate::source::page::offloaded_sql;

/// More columns than any Dify has; a table with more is refused when its columns are looked at.
pub const COLUMNS_MAX: usize = 96;

impl Source {
    /// Calls `each` with the cells of every row of `ids` that is still there, in no order, and with
    /// whether its full payload lies in object storage: both as of the same moment.
    ///
    /// Cells are in the order of `columns` and in the form that their [`ColumnKind`] says; they
    /// are borrowed from the connection's buffer.
    pub async fn read(
        &self,
        shape: &Shape,
        columns: &[Column],
        ids: &[Uuid],
        mut each: impl FnMut(&Cells<'_>, bool),
    ) -> anyhow::Result<()> {
        // No plan may read the whole list of offloaded payloads.
        let mut tx = self.begin_with("; SET LOCAL enable_seqscan = off").await?;
        let asked = Asked { table: shape.table, columns, offloaded: offloaded_sql(shape) };
        read_cells(&mut tx, &asked, ids, &mut each).await
    }
}

/// What is read of a row.
pub(in crate::source) struct Asked<'a> {
    pub(in crate::source) table: Table,
    pub(in crate::source) columns: &'a [Column],
    /// SQL that says whether row `t`'s full payload lies in object storage.
    pub(in crate::source) offloaded: &'static str,
}

/// The same within a transaction.
pub(in crate::source) async fn read_cells(
    tx: &mut Tx,
    asked: &Asked<'_>,
    ids: &[Uuid],
    each: &mut impl FnMut(&Cells<'_>, bool),
) -> anyhow::Result<()> {
    let Asked { table, columns, offloaded } = *asked;
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
        "SELECT {}, {offloaded} FROM {} t WHERE t.id = ANY($1)",
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
        each(&cells[..columns.len()], row.try_get(columns.len())?);
    }
    Ok(())
}
