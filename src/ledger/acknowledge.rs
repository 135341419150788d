//! Acknowledgements: SLS has said that a batch is stored.

use anyhow::Context as _;
use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::pg::{self, Tx};

/// SLS's word that a batch is stored.
#[derive(Debug, Clone)]
pub struct Acknowledgement {
    pub batch_id: Uuid,
    pub request_id: String,
}

impl Ledger {
    /// These batches are in SLS: SLS said so.
    pub async fn stored(&self, stored: &[Acknowledgement]) -> anyhow::Result<()> {
        if stored.is_empty() {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        acknowledge(&mut tx, stored).await?;
        tx.commit().await.context("acknowledge batches")
    }
}

/// The statement that acknowledges, with its two parameters behind `after` others: it stands alone,
/// or as a part of a step's statement. [`bind_acknowledged`] binds them.
pub(in crate::ledger) fn acknowledge_sql(after: u32) -> String {
    let (ids, request_ids) = (after + 1, after + 2);
    format!(
        "UPDATE sls_backfill.batch b SET state = 'stored', request_id = a.request_id, \
         stored_at = clock_timestamp() \
         FROM unnest(${ids}::uuid[], ${request_ids}::text[]) AS a(id, request_id) \
         WHERE b.id = a.id AND b.state = 'intent'"
    )
}

/// Binds the parameters of [`acknowledge_sql`].
pub(in crate::ledger) fn bind_acknowledged(
    statement: Query<'static, Postgres, PgArguments>,
    stored: &[Acknowledgement],
) -> Query<'static, Postgres, PgArguments> {
    statement
        .bind(stored.iter().map(|stored| stored.batch_id).collect::<Vec<_>>())
        .bind(stored.iter().map(|stored| stored.request_id.clone()).collect::<Vec<_>>())
}

/// Acknowledges within a transaction.
pub(in crate::ledger) async fn acknowledge(
    tx: &mut Tx,
    stored: &[Acknowledgement],
) -> anyhow::Result<()> {
    if stored.is_empty() {
        return Ok(());
    }
    bind_acknowledged(pg::made_statement(&acknowledge_sql(0)), stored)
        .execute(&mut **tx)
        .await
        .context("acknowledge batches")?;
    Ok(())
}
