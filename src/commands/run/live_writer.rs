//! Which rows of a run another writer, Dify's own, may have stored, and what it costs to look.

use std::sync::Arc;
use std::time::Duration;

use crate::commands::exit::{Ended, Exit};
use crate::commands::output::count;
use crate::commands::run::Run;
use crate::ledger::pass::Pass;
use crate::pipeline::guard::live_writer::{LiveWriter, look};
use crate::pipeline::progress::Progress;
use crate::pipeline::read::live_look::{
    LiveLook, LiveLookParts, QUERIES_MAX, SEARCHABLE_AFTER, queries_expected,
};
use crate::pipeline::read::window::scope;
use crate::record::table::Table;
use crate::source::catalog::Shape;
use crate::source::scope::Scope;

/// The word by which a run does not look.
const WORD: &str = "--beside-live-writer";

/// A query takes about a second, with those beside it (s).
const QUERY_S: u64 = 1;

impl Run<'_> {
    /// Looks for other writers in the logstores. Ends the run where nobody knows of one: it would hold
    /// all rows.
    pub(in crate::commands::run) async fn check_live_writers(&mut self) -> Result<(), Ended> {
        if self.settings.beside_live_writer {
            return Ok(());
        }
        for table in &self.settings.tables {
            let kept_since = self.kept(*table).bound();
            match look(&self.client, &self.ledger, *table, kept_since).await? {
                LiveWriter::None => {}
                LiveWriter::Unclear(why) => return Err(unclear(*table, &why)),
                LiveWriter::Writes(period) => {
                    self.live.insert(*table, period);
                }
            }
        }
        Ok(())
    }

    /// The look of a table; `None`: nobody else writes.
    pub(in crate::commands::run) fn live_look(
        &self,
        table: Table,
        progress: &Arc<Progress>,
    ) -> Option<Arc<LiveLook>> {
        let period = *self.live.get(&table)?;
        let visible_s = self.settings.timings.visible_s.unsigned_abs();
        Some(Arc::new(LiveLook::new(LiveLookParts {
            client: self.client.clone(),
            table,
            period,
            searchable_after: SEARCHABLE_AFTER.min(Duration::from_secs(visible_s)),
            progress: Arc::clone(progress),
            shutdown: self.shutdown.clone(),
        })))
    }

    /// Says which rows of the pass are looked up, and about how long that takes.
    pub(in crate::commands::run) async fn tell_live_look(
        &self,
        shape: &Shape,
        pass: &Pass,
    ) -> anyhow::Result<()> {
        let table = shape.table;
        let Some(period) = self.live.get(&table) else { return Ok(()) };
        let (logstore, oldest, since) = (table.logstore(), period.oldest, period.since());
        if !period.is_searchable {
            tracing::warn!(
                "logs of another writer, from {oldest} on, were read in logstore {logstore}, and SLS's \
                 search does not find them: rows of {table} that finished since {since} are held \
                 `live?`, and looked up by the next run\n\
                 hint: if that writer stores none of Dify's rows, say {WORD}"
            );
            return Ok(());
        }
        let of_pass = scope(&pass.plan);
        let in_period = Scope { since: of_pass.since.max(Some(since)), ..of_pass };
        let rows = self.source.rows_expected(&in_period, shape).await?;
        let (least, most) = queries_expected(rows);
        tracing::info!(
            "logstore {logstore} holds logs of another writer, from {oldest} on: Dify's own, it seems. \
             Rows of {table} that finished since {since} are looked up there by id before they are \
             sent: about {} rows, {} to {} queries, {} min at most",
            count(rows),
            count(least),
            count(most),
            count((most * QUERY_S).div_ceil(60 * QUERIES_MAX as u64)),
        );
        Ok(())
    }
}

fn unclear(table: Table, why: &str) -> Ended {
    let error = anyhow::anyhow!(
        "nobody knows whether another writer, such as Dify's own, has stored rows in logstore {}: \
         {why}\nno log was sent\n\
         hint: run the same command again later, or, if there is no such writer, say {WORD}",
        table.logstore(),
    );
    Ended { exit: Exit::Unfinished, error }
}
