//! Stops a run that would send rows which Dify's own writer has stored already.

use crate::commands::exit::Ended;
use crate::commands::run::Run;
use crate::pipeline::guard::live_writer::{LiveWriter, look, safe_before};
use crate::pipeline::read::window::Refusal;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// The word by which a run sends what it would not.
const WORD: &str = "--beside-live-writer";

impl Run<'_> {
    /// Looks for other writers in the logstores; refuses to go on where rows of their time are asked
    /// for. Where only older ones are, those that finished in their time all the same are held.
    pub(in crate::commands::run) async fn check_live_writers(&mut self) -> Result<(), Ended> {
        if self.settings.beside_live_writer {
            return Ok(());
        }
        let mut refused: Option<(Table, Timestamp)> = None;
        for table in &self.settings.tables {
            match look(&self.client, &self.ledger, *table).await? {
                LiveWriter::None => {}
                LiveWriter::Unclear(why) => return Err(unclear(*table, &why).into()),
                LiveWriter::Since(since) => {
                    self.live_since.insert(*table, safe_before(since));
                    let is_earlier = refused.is_none_or(|(_, earliest)| since < earliest);
                    if is_earlier && !self.is_before(*table, since).await? {
                        refused = Some((*table, since));
                    }
                }
            }
        }
        refused.map_or(Ok(()), |(table, since)| Err(too_late(table, since).into()))
    }

    /// Whether all rows that are asked for are older than a writer whose oldest log is of `since`.
    async fn is_before(&self, table: Table, since: Timestamp) -> anyhow::Result<bool> {
        let open = self.ledger.open_pass(table).await?;
        // One that has begun can end only where it was to end; what finished in the writer's time is
        // held.
        if let Some(open) = open.filter(|open| open.begun) {
            return Ok(open.plan.until <= since);
        }
        Ok(self.settings.wish.until.is_some_and(|until| until <= safe_before(since)))
    }
}

fn too_late(table: Table, since: Timestamp) -> Refusal {
    Refusal(format!(
        "logstore {} holds logs of another writer, from {since} on: Dify's own, it seems, which has \
         stored the rows of that time; they would be there twice\nno log was sent\n\
         hint: move the rows from before it: --until {}\n\
         hint: if that writer has stored none of Dify's rows, say {WORD}",
        table.logstore(),
        safe_before(since),
    ))
}

fn unclear(table: Table, why: &str) -> Refusal {
    Refusal(format!(
        "nobody knows whether another writer, such as Dify's own, has stored rows in logstore {}: \
         {why}\nno log was sent\n\
         hint: try again later, or, if there is no such writer, say {WORD}",
        table.logstore(),
    ))
}
