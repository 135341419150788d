//! Batches that SLS has acknowledged and does not give back: a person decides about them.

use crate::commands::exit::{Ended, Exit};
use crate::commands::output::count;
use crate::commands::run::Run;
use crate::ledger::proved_age::UnkeptBatch;
use crate::pipeline::recover::rules::decidable_at;
use crate::pipeline::send::canary::Unkept;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

impl Run<'_> {
    /// Ends the run while there are such batches, unless they are to be sent again. Everything that
    /// SLS gave back from `read_from` on (Unix seconds, SLS's clock) was read.
    pub(in crate::commands::run) async fn check_unkept(
        &self,
        table: Table,
        read_from: i64,
    ) -> Result<(), Ended> {
        let unkept = self.ledger.unkept(table).await?;
        let Some(first) = unkept.first() else { return Ok(()) };
        if !self.settings.resend_unkept {
            return Err(anyhow::Error::from(Unkept::earlier(table, first)).into());
        }
        let ids: Vec<_> = unkept.iter().map(|batch| batch.batch_id).collect();
        // At least what is asked of a batch that was never answered.
        let others = self.ledger.unseen(table, &ids).await?;
        let last_signed_at = unkept.iter().map(|batch| batch.signed_at).max();
        let decidable_at = decidable_at(last_signed_at.unwrap_or(0), self.settings.timings);
        if decidable_at > read_from || !others.is_empty() {
            let when = match others.is_empty() {
                true => format!("from {} (UTC) on", Timestamp::from_unix_s(decidable_at)),
                false => "when SLS gives back all else that it has acknowledged".to_owned(),
            };
            let error = anyhow::anyhow!(
                "whether SLS keeps batch {} with {} rows of {table} can be decided {when}: until then \
                 it may only be slow\nnothing was sent\nhint: run the same command again then",
                first.batch_id,
                first.rows,
            );
            return Err(Ended { exit: Exit::Unfinished, error });
        }
        for UnkeptBatch { batch_id, rows, found, .. } in unkept {
            if self.ledger.decide_unkept(table, batch_id).await? {
                tracing::warn!(
                    "SLS has acknowledged batch {batch_id} and does not keep it: its {} rows are tried \
                     again (--resend-unkept)",
                    count(rows)
                );
            } else {
                tracing::error!(
                    "batch {batch_id}: SLS holds a part of it ({found} of {rows} rows): it is left as \
                     it is, and nothing of it is sent again"
                );
            }
        }
        Ok(())
    }
}
