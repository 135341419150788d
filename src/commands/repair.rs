//! `repair`: works through what the last verification of the content has found. Without `--execute`
//! it only tells what it would do.
//!
//! It sends nothing itself. A batch that is missing is opened again in the ledger; the next `run`
//! settles it like any batch whose fate is open: it looks once more whether it is there, reads its
//! rows again, and sends it under a new number.

mod changed;
mod copies;
pub mod parts;
mod step;

use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use uuid::Uuid;

use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::output::{self, Format, count};
use crate::commands::repair::parts::{Repair, RepairSettings, Tally};
use crate::commands::repair::step::{Step, step};
use crate::commands::run::{beat, enter_alone};
use crate::commands::setup;
use crate::ledger::Ledger;
use crate::ledger::finding::Finding;
use crate::ledger::hold::NewHold;
use crate::ledger::verification::Verification;
use crate::pg::pool::PoolSize;
use crate::pipeline::retry::with_retries;
use crate::pipeline::send::age::kept_since;
use crate::pipeline::verify::content::compare::{SOURCE_CHANGED, SOURCE_GONE};
use crate::pipeline::verify::content::unaccounted::{UNACCOUNTED, look_again};
use crate::pipeline::verify::content::verdict::Verdict;
use crate::record::hold::HoldReason;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::sls::tag_sums::NOT_SEALED;

/// Findings read from the ledger at once.
const PAGE_FINDINGS: u32 = 100;

/// A verification that is older is no ground to change anything on.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// Plans, or repairs.
pub async fn run(settings: &RepairSettings) -> Result<Exit, Ended> {
    let source = setup::source(&settings.postgres, PoolSize::few(2)).await?;
    let client = setup::client(&settings.sls)?;
    let ledger = Ledger::open_existing(
        &settings.postgres.ledger,
        PoolSize::few(2),
        settings.allow_fsync_off,
    )
    .await
    .or_exit(Exit::Preflight)?;
    ledger.check_stop().await?;
    let mut logstores = Vec::new();
    for table in &settings.tables {
        logstores.push(setup::known_logstore(&client, &settings.sls.project, *table).await?);
    }
    setup::bind(&ledger, &settings.sls, &logstores).await?;
    let repair = Repair { settings, source, ledger: ledger.clone(), client };
    if !settings.execute {
        return repair.work().await;
    }
    // In another database rows would only seem to be gone, or changed.
    ledger.recognise(&repair.source.identity().await?, false).await?;
    // Nobody sends meanwhile.
    let process = enter_alone(&ledger).await?;
    let done = tokio::select! {
        done = repair.work() => done,
        lost = beat(&ledger, &process) => Err(lost.into()),
    };
    let left = ledger.leave(&process).await;
    let exit = done?;
    left?;
    Ok(exit)
}

impl Repair<'_> {
    async fn work(&self) -> Result<Exit, Ended> {
        match self.settings.changed {
            true => self.changed().await,
            false => self.all_tables().await,
        }
    }

    async fn all_tables(&self) -> Result<Exit, Ended> {
        let mut tallies = Vec::new();
        for table in &self.settings.tables {
            let last = self.ledger.last_verification(*table).await?;
            let verification = last.filter(|last| last.is_done).with_context(|| {
                format!(
                    "the content of {table} was not verified, or not to the end, so nobody knows \
                     what there is to repair\nnothing was done\n\
                     hint: `dify-sls-backfill verify --level content`"
                )
            });
            let verification = verification.or_exit(Exit::Preflight)?;
            self.check_age(&verification).or_exit(Exit::Preflight)?;
            tallies.push((*table, self.table(&verification).await?));
        }
        self.print(&tallies);
        Ok(self.conclude(&tallies))
    }

    fn check_age(&self, verification: &Verification) -> anyhow::Result<()> {
        let age_s = self.client.now() - verification.ended_at;
        anyhow::ensure!(
            !self.settings.execute || age_s.unsigned_abs() < FRESH.as_secs(),
            "the last verification of {} is {} hours old\nnothing was done\n\
             hint: `dify-sls-backfill verify --level content --recheck` looks at what has come since",
            verification.table,
            age_s / 3600
        );
        Ok(())
    }

    async fn table(&self, verification: &Verification) -> anyhow::Result<Tally> {
        let table = verification.table;
        let kept_since = self.kept_since(table).await?;
        let mut kinds = Verdict::ALL.map(Verdict::name).to_vec();
        kinds.extend([SOURCE_CHANGED, SOURCE_GONE, UNACCOUNTED]);
        let (mut tally, mut after) = (Tally::default(), 0);
        loop {
            let findings =
                self.ledger.findings_of(verification.id, &kinds, after, PAGE_FINDINGS).await?;
            let Some((last, _)) = findings.last() else { return Ok(tally) };
            after = *last;
            for (_, finding) in findings {
                let missing = match finding.batch_id {
                    Some(batch_id) => self.ledger.missing_batch(batch_id).await?,
                    None => None,
                };
                match step(&finding, missing.as_ref(), kept_since) {
                    Step::SendAgain => self.send_again(&finding, &mut tally).await?,
                    Step::GiveToNextRun => self.give(table, &finding, &mut tally).await?,
                    Step::NoteGone => self.note_gone(table, &finding, &mut tally).await?,
                    Step::Hide => self.hide(table, &finding, &mut tally).await?,
                    Step::Leave(why) => {
                        let why = self.with_query(&finding, why).await?;
                        tally.leave(&finding, &why);
                    }
                    Step::Nothing => {}
                }
            }
        }
    }

    /// Since when rows must have finished for their logs to be kept; `None`: for ever.
    pub(in crate::commands::repair) async fn kept_since(
        &self,
        table: Table,
    ) -> anyhow::Result<Option<Timestamp>> {
        let logstore = table.logstore();
        let body = with_retries(|| self.client.logstore(logstore))
            .await
            .with_context(|| format!("look up logstore {logstore}"))?;
        let now = Timestamp::from_unix_s(self.client.now());
        let ttl_days = body.and_then(|body| body["ttl"].as_i64());
        Ok(ttl_days.and_then(|days| kept_since(days, now)))
    }

    async fn send_again(&self, finding: &Finding, tally: &mut Tally) -> anyhow::Result<()> {
        let (Some(batch_id), Some(attempts)) = (finding.batch_id, finding.attempts) else {
            return Ok(());
        };
        if self.settings.execute && !self.ledger.open_again(batch_id, attempts).await? {
            tally.leave(finding, "it was sent since it was judged; verify again");
            return Ok(());
        }
        tally.add("send_again", finding.rows);
        tally.needs_run = true;
        Ok(())
    }

    /// Rows that nothing names become held rows, which the next run tries.
    async fn give(&self, table: Table, finding: &Finding, tally: &mut Tally) -> anyhow::Result<()> {
        let rows = look_again(&self.source, &self.ledger, table, &finding.row_ids).await?;
        if rows.is_empty() {
            return Ok(());
        }
        let late: Vec<_> = rows
            .iter()
            .map(|row| NewHold {
                row_id: row.id,
                created_at: row.created_at,
                finished_at: row.finished_on.map(|day| Timestamp::from_unix_s(day.unix_s())),
                reason: HoldReason::Late,
                detail: "it was not there when its range was read".to_owned(),
                look_again: HoldReason::Late.look_again(),
            })
            .collect();
        if self.settings.execute && !self.ledger.hold_late(table, &late).await? {
            tally.leave(finding, "no finished pass covers it: the next run reads it anyhow");
            return Ok(());
        }
        tally.add("give_to_next_run", rows.len() as u64);
        tally.needs_run = true;
        Ok(())
    }

    async fn note_gone(
        &self,
        table: Table,
        finding: &Finding,
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        let Some(batch_id) = finding.batch_id else { return Ok(()) };
        let there = self.source.rows_by_id(table, &finding.row_ids).await?;
        let there: Vec<Uuid> = there.iter().map(|row| row.id).collect();
        let gone: Vec<_> =
            finding.row_ids.iter().filter(|id| !there.contains(id)).copied().collect();
        if gone.is_empty() {
            return Ok(());
        }
        if self.settings.execute {
            self.ledger.note_gone(batch_id, &gone).await?;
        }
        tally.add("note_gone", gone.len() as u64);
        Ok(())
    }

    /// Adds the query that finds what nothing can be done about.
    async fn with_query(&self, finding: &Finding, why: &str) -> anyhow::Result<String> {
        let (Some(batch_id), true) = (finding.batch_id, finding.found > 0) else {
            return Ok(why.to_owned());
        };
        let tag = match self.ledger.searched_batch(batch_id).await? {
            Some(batch) => batch.tag,
            None => {
                let ledger_id = finding.ledger_id.filter(|id| *id != NOT_SEALED);
                format!("{}/{batch_id}", ledger_id.unwrap_or(self.ledger.id))
            }
        };
        Ok(format!("{why}; found by: {}", copies::query(&tag, None)))
    }

    fn print(&self, tallies: &[(Table, Tally)]) {
        if self.settings.format == Format::Json {
            let tables: serde_json::Map<_, _> = tallies
                .iter()
                .map(|(table, tally)| {
                    let steps: serde_json::Map<_, _> = tally
                        .steps
                        .iter()
                        .map(|(step, (findings, rows))| {
                            let step_json = json!({
                                "findings": findings.to_string(), "rows": rows.to_string(),
                            });
                            ((*step).to_owned(), step_json)
                        })
                        .collect();
                    let left = json!({
                        "steps": steps,
                        "left": tally.left,
                        "left_count": tally.left_count.to_string(),
                    });
                    (table.name().to_owned(), left)
                })
                .collect();
            let all = json!({
                "schema_version": 1, "executed": self.settings.execute, "tables": tables,
            });
            output::line(&all.to_string());
            return;
        }
        for (table, tally) in tallies {
            output::line(&format!("{table}:"));
            for (step, (findings, rows)) in &tally.steps {
                output::line(&line(step, *findings, *rows, self.settings.execute));
            }
            if tally.left_count > 0 {
                let left = count(tally.left_count);
                output::line(&format!("  left as they are: {left} findings"));
            }
            if tally.steps.is_empty() && tally.left_count == 0 {
                output::line("  nothing to repair");
            }
        }
    }

    fn conclude(&self, tallies: &[(Table, Tally)]) -> Exit {
        for (table, tally) in tallies {
            for left in &tally.left {
                tracing::error!("{table}: {left}");
            }
            if tally.left_count > tally.left.len() as u64 {
                tracing::error!("{table}: … and more, which `verify --output json` lists");
            }
        }
        let has_steps = tallies.iter().any(|(_, tally)| !tally.steps.is_empty());
        let has_left = tallies.iter().any(|(_, tally)| tally.left_count > 0);
        if !self.settings.execute {
            if has_steps {
                tracing::info!("nothing was changed\nhint: `repair --execute` does it");
            }
            return Exit::Done;
        }
        if tallies.iter().any(|(_, tally)| tally.needs_run) {
            tracing::info!(
                "hint: `dify-sls-backfill run` sends what was opened; then verify again"
            );
        }
        if has_left { Exit::Difference } else { Exit::Done }
    }
}

fn line(step: &str, findings: u64, rows: u64, is_done: bool) -> String {
    let (would, done) = match step {
        "send_again" => ("would be sent again by the next run", "are sent again by the next run"),
        "give_to_next_run" => ("would be given to the next run", "are given to the next run"),
        "note_gone" => ("would be noted as gone", "are noted as gone"),
        _ => ("would be hidden from search", "are hidden from search"),
    };
    let what = if is_done { done } else { would };
    let unit = if step == "hide" { "logs" } else { "rows" };
    match step {
        "give_to_next_run" => format!("  {:>12} {unit} {what}", count(rows)),
        _ => format!("  {:>12} {unit} of {} batches {what}", count(rows), count(findings)),
    }
}
