//! Copies of a batch that is in SLS more than once: finds them by their tags, and hides all but one
//! where they can be told apart.

use std::time::Duration;

use anyhow::Context as _;

use crate::commands::repair::parts::{Repair, Tally};
use crate::ledger::finding::Finding;
use crate::ledger::repair::SearchedBatch;
use crate::pipeline::retry::with_retries;
use crate::record::table::Table;
use crate::sls::answer::{Failure, NextAction};
use crate::sls::soft_delete::TaskState;
use crate::sls::tags::{ATTEMPT_TAG, BATCH_TAG};

/// So long is waited for a task that hides logs.
const TASK_TRIES_MAX: u32 = 60;
const TASK_EVERY: Duration = Duration::from_secs(1);

/// The search that finds a batch, or what came with one of its sendings.
pub(in crate::commands::repair) fn query(tag: &str, attempt: Option<u32>) -> String {
    let batch = format!("__tag__:{BATCH_TAG}: \"{tag}\"");
    match attempt {
        None => batch,
        Some(attempt) => format!("{batch} and __tag__:{ATTEMPT_TAG}: \"{attempt}\""),
    }
}

/// Which sendings to hide, given how many logs search finds of each, from 1: all whole copies but
/// the first. In words why none can be.
fn superfluous(rows: u64, by_sending: &[u64]) -> Result<Vec<u32>, &'static str> {
    let whole: Vec<_> = (1u32..).zip(by_sending).filter(|(_, logs)| **logs == rows).collect();
    let others = by_sending.iter().any(|logs| *logs != rows && *logs != 0);
    match whole.as_slice() {
        _ if others => Err("its copies came with the same sending, or not whole: they cannot be \
                            told apart"),
        [] => Err("search does not find it"),
        [_] => Err("search finds one whole copy alone: the others are hidden already"),
        [_, rest @ ..] => Ok(rest.iter().map(|(sending, _)| *sending).collect()),
    }
}

impl Repair<'_> {
    /// Hides the copies of a batch but one.
    pub(in crate::commands::repair) async fn hide(
        &self,
        table: Table,
        finding: &Finding,
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        let Some(batch_id) = finding.batch_id else { return Ok(()) };
        let Some(batch) = self.ledger.searched_batch(batch_id).await? else { return Ok(()) };
        let mut by_sending = Vec::new();
        for sending in 1..=batch.sendings {
            by_sending.push(self.find(table, &batch, &query(&batch.tag, Some(sending))).await?);
        }
        let all = self.find(table, &batch, &query(&batch.tag, None)).await?;
        let sendings =
            match (by_sending.iter().sum::<u64>() == all, superfluous(batch.rows, &by_sending)) {
                (true, Ok(sendings)) => sendings,
                (false, Ok(_)) => {
                    let why = "search finds logs of it that say of no sending that it knows";
                    tally.leave(finding, &self.with_query(finding, why).await?);
                    return Ok(());
                }
                (_, Err(why)) => {
                    tally.leave(finding, &self.with_query(finding, why).await?);
                    return Ok(());
                }
            };
        for sending in sendings {
            if self.settings.execute {
                let query = query(&batch.tag, Some(sending));
                if let Err(failure) = self.hide_sending(table, &batch, &query).await? {
                    let why = format!("SLS does not hide it: {failure}; found by: {query}");
                    tally.leave(finding, &why);
                    continue;
                }
            }
            tally.add("hide", batch.rows);
        }
        Ok(())
    }

    /// How many logs search finds, for certain.
    async fn find(&self, table: Table, batch: &SearchedBatch, query: &str) -> anyhow::Result<u64> {
        let logstore = table.logstore();
        for _ in 0..5 {
            let count = || self.client.count_found(logstore, batch.from, batch.to, query);
            let counted =
                with_retries(count).await.with_context(|| format!("search {logstore}"))?;
            if counted.is_complete {
                return Ok(counted.logs);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        anyhow::bail!(
            "search {logstore}: SLS's answer stays incomplete\nnothing was hidden\n\
             hint: run the same command again"
        )
    }

    /// Hides what `query` finds, and waits until that is done.
    async fn hide_sending(
        &self,
        table: Table,
        batch: &SearchedBatch,
        query: &str,
    ) -> anyhow::Result<Result<(), Failure>> {
        let logstore = table.logstore();
        let hiding = || self.client.hide_logs(logstore, batch.from, batch.to, query);
        let task_id = match with_retries(hiding).await {
            Ok(task_id) => task_id,
            Err(failure) if failure.next == NextAction::Stop => return Ok(Err(failure)),
            Err(failure) => return Err(failure).context("hide logs"),
        };
        for _ in 0..TASK_TRIES_MAX {
            let state = with_retries(|| self.client.hide_state(logstore, &task_id))
                .await
                .context("ask whether logs are hidden")?;
            match state {
                TaskState::Done => return Ok(Ok(())),
                TaskState::Failed(word) => {
                    return Ok(Err(Failure::unknown(format!("task {task_id}: {word}"))));
                }
                TaskState::Running => tokio::time::sleep(TASK_EVERY).await,
            }
        }
        tracing::warn!("task {task_id} of SLS still hides logs; it goes on by itself");
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_whole_copies_but_the_first_are_superfluous() {
        assert_eq!(superfluous(5, &[5, 5]), Ok(vec![2]));
        assert_eq!(superfluous(5, &[0, 5, 0, 5, 5]), Ok(vec![4, 5]));
        for odd in [[5, 10].as_slice(), &[10], &[5, 3], &[5, 0], &[0, 0], &[]] {
            assert!(superfluous(5, odd).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn the_query_names_batch_and_sending() {
        assert_eq!(query("7/8", None), r#"__tag__:__batch__: "7/8""#);
        let one = query("7/8", Some(2));
        assert_eq!(one, r#"__tag__:__batch__: "7/8" and __tag__:__attempt__: "2""#);
    }
}
