//! `repair --changed`: gives the new state of rows that have changed since they were sent to the next
//! run, and says first what that does to Dify's charts.

use anyhow::Context as _;
use serde_json::json;
use uuid::Uuid;

use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::output::{self, Format, count};
use crate::commands::repair::parts::Repair;
use crate::commands::setup;
use crate::dify::conversion::LogTime;
use crate::dify::eligibility::Bounds;
use crate::pipeline::recover::revision::{Reviser, Revision};
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::source::catalog::Shape;

/// Batches read from the ledger at once.
const PAGE_BATCHES: u32 = 32;

/// So many rows that nothing can be done about are told one by one.
const TOLD_MAX: usize = 20;

/// As `run` does it by default: what finished so short a time ago may still change.
const SETTLE_S: i64 = 3600;
const ROW_BYTES_MAX: u64 = 16 << 20;

/// What is, or would be, done about one table.
#[derive(Debug, Clone, Default)]
struct Tally {
    rows: u64,
    /// What their older logs count for.
    tokens: u64,
    left: Vec<String>,
    left_count: u64,
}

impl Tally {
    fn leave(&mut self, what: &str, why: &str) {
        self.left_count += 1;
        if self.left.len() < TOLD_MAX {
            self.left.push(format!("{what}: {why}"));
        }
    }
}

impl Repair<'_> {
    /// Works through what a verification or a purge has found changed.
    pub(in crate::commands::repair) async fn changed(&self) -> Result<Exit, Ended> {
        let shapes = setup::shapes(&self.source, &self.settings.tables).await?;
        let mut tallies = Vec::new();
        for shape in shapes {
            let table = shape.table;
            tallies.push((table, self.changed_rows(shape).await.or_exit(Exit::Failed)?));
        }
        self.print_changed(&tallies);
        let rows: u64 = tallies.iter().map(|(_, tally)| tally.rows).sum();
        if rows > 0 {
            tracing::info!(
                "{}",
                match self.settings.execute {
                    true =>
                        "hint: `dify-sls-backfill run` sends what was opened; then verify again",
                    false => "nothing was changed\nhint: `repair --changed --execute` does it",
                }
            );
        }
        let has_left = tallies.iter().any(|(_, tally)| tally.left_count > 0);
        Ok(if has_left && self.settings.execute { Exit::Difference } else { Exit::Done })
    }

    async fn changed_rows(&self, shape: Shape) -> anyhow::Result<Tally> {
        let table = shape.table;
        let now = Timestamp::from_unix_s(self.client.now().min(setup::own_now()));
        let reviser = Reviser {
            source: self.source.clone(),
            ledger: self.ledger.clone(),
            client: self.client.clone(),
            // Whether a graph is written, and which time, each batch's own conversion says.
            current: setup::conversion(&shape, true, LogTime::FinishedAt),
            shape,
            bounds: Bounds {
                settled_before: now.plus_s(-SETTLE_S),
                kept_since: self.kept_since(table).await?,
                row_bytes_max: ROW_BYTES_MAX,
                ..Bounds::NONE
            },
        };
        let (mut tally, mut after) = (Tally::default(), Uuid::nil());
        loop {
            let batches = self.ledger.changed_batches(table, after, PAGE_BATCHES).await?;
            let Some(last) = batches.last() else { return Ok(tally) };
            after = last.id;
            for batch in batches.iter().filter(|batch| !batch.row_ids.is_empty()) {
                let context = || format!("look at the changed rows of batch {}", batch.id);
                match reviser.revisions(batch).await.with_context(context)? {
                    Ok(revisions) => self.take(table, revisions, &mut tally).await?,
                    Err(why) => tally.leave(&format!("batch {}", batch.id), &why),
                }
            }
        }
    }

    async fn take(
        &self,
        table: Table,
        revisions: Vec<Revision>,
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        for revision in revisions {
            match revision {
                Revision::Left { row_id, why } => tally.leave(&format!("row {row_id}"), &why),
                Revision::Ready { new, earlier_tokens } => {
                    if self.settings.execute && !self.ledger.revise(table, &new).await? {
                        let batch = format!("batch {}", new.revises);
                        tally.leave(&batch, "it is not what it was when it was looked at");
                        continue;
                    }
                    tally.rows += 1;
                    tally.tokens += earlier_tokens;
                }
            }
        }
        Ok(())
    }

    fn print_changed(&self, tallies: &[(Table, Tally)]) {
        let execute = self.settings.execute;
        if self.settings.format == Format::Json {
            let tables: serde_json::Map<_, _> = tallies
                .iter()
                .map(|(table, tally)| {
                    let changed = json!({
                        "rows_sent_anew": tally.rows.to_string(),
                        "tokens_counted_twice": tally.tokens.to_string(),
                        "left": tally.left,
                        "left_count": tally.left_count.to_string(),
                    });
                    (table.name().to_owned(), changed)
                })
                .collect();
            let all = json!({"schema_version": 1, "executed": execute, "changed": tables});
            output::line(&all.to_string());
        }
        for (table, tally) in tallies {
            for left in &tally.left {
                tracing::error!("{table}: {left}");
            }
            if self.settings.format == Format::Json {
                continue;
            }
            let would = if execute { "are" } else { "would be" };
            output::line(&format!(
                "{table}: {} changed rows {would} sent once more by the next run, {} are left",
                count(tally.rows),
                count(tally.left_count),
            ));
            if tally.tokens > 0 {
                output::line(&format!(
                    "    readers of Dify 1.11 to 1.14 sum the tokens of every log: their daily \
                     charts {} {} tokens twice, for ever",
                    if execute { "count" } else { "would count" },
                    count(tally.tokens),
                ));
            }
        }
    }
}
