//! Which rows the ledger knows: those in a live batch, and those held. Ids alone decide: whatever
//! else of a row was changed, it is the same row.

use std::collections::HashSet;

use anyhow::Context as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::live_rows::live_rows;
use crate::pg;
use crate::record::table::Table;

impl Ledger {
    /// Which of these rows are in a live batch or, unless `know_held` is false, held: in one
    /// snapshot, for a row may be passed from the one to the other.
    pub async fn known(
        &self,
        table: Table,
        ids: &[Uuid],
        know_held: bool,
    ) -> anyhow::Result<HashSet<Uuid>> {
        let mut known = HashSet::new();
        if ids.is_empty() {
            return Ok(known);
        }
        let mut tx = self.begin_snapshot().await?;
        // A plain array would be looked at id by id when the statement is planned, and where nothing
        // is known of the table yet, the plan would be to read all of it.
        let live = format!(
            "SELECT row_id FROM {} WHERE row_id = ANY(ARRAY(SELECT unnest($1::uuid[])))",
            live_rows(table)
        );
        let live = pg::made_statement(&live)
            .bind(ids)
            .fetch_all(&mut *tx)
            .await
            .context("look for batches of these rows")?;
        let held = match know_held {
            true => pg::statement(
                "SELECT row_id FROM sls_backfill.hold WHERE table_name = $1 \
                 AND row_id = ANY(ARRAY(SELECT unnest($2::uuid[]))) AND state = 'open'",
            )
            .bind(table.name())
            .bind(ids)
            .fetch_all(&mut *tx)
            .await
            .context("look for held rows")?,
            false => Vec::new(),
        };
        for row in live.iter().chain(&held) {
            known.insert(row.try_get("row_id")?);
        }
        Ok(known)
    }
}
