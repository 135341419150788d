//! The purge itself: batch by batch, each on a proof of its own.

use std::collections::BTreeSet;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use serde_json::json;
use uuid::Uuid;

use crate::commands::exit::{Ended, Exit};
use crate::commands::output::{self, Format, count};
use crate::commands::purge::plan::TablePlan;
use crate::commands::purge::settings::PurgeSettings;
use crate::ledger::Ledger;
use crate::pipeline::guard::pace::{Load, Pace};
use crate::pipeline::progress::Progress;
use crate::pipeline::progress::screen::Screen;
use crate::pipeline::purge::chunk_size::ChunkSize;
use crate::pipeline::purge::comparison::Comparing;
use crate::pipeline::purge::deleter::{Deleted, Deleter, Piece, Step};
use crate::pipeline::purge::gate::Gate;
use crate::pipeline::purge::prover::{Candidate, Proved, Prover};
use crate::pipeline::shutdown::Shutdown;
use crate::pipeline::verify::counts::{CountsParts, equal_days};
use crate::pipeline::verify::fresh_proof::NotProved;
use crate::record::day::Day;
use crate::record::key::KeyOrder;
use crate::record::table::Table;
use crate::sls::client::Client;
use crate::source::Source;
use crate::source::writable::Writable;

/// After so many time-outs, or proofs that became too old, in a row a batch is left for another time.
const IN_VAIN_MAX: u32 = 8;

/// So many changed rows are listed.
const LISTED_ROWS_MAX: usize = 20;

/// What a purge works with.
pub struct Execution<'a> {
    pub settings: &'a PurgeSettings,
    pub screen: &'a Screen,
    pub source: Source,
    pub ledger: Ledger,
    pub client: Client,
    pub plans: Vec<TablePlan>,
    pub shutdown: Shutdown,
}

/// What came of a table.
#[derive(Debug, Default)]
struct Outcome {
    deleted: Deleted,
    batches: u64,
    /// Batches that SLS does not hold as the ledger says.
    not_proved: u64,
    /// Batches whose rows cannot be compared.
    not_comparable: u64,
    /// Batches that SLS does not keep long enough.
    not_kept: u64,
    /// Batches with rows of a day of which SLS's search does not find what the ledger says.
    not_found: u64,
    /// Batches left for another time: locks, time-outs, somebody else at work.
    left: u64,
}

impl Outcome {
    fn is_not_proved(&mut self, batch_id: Uuid, why: &NotProved) {
        tracing::error!("batch {batch_id} stays in Postgres: {why}");
        self.not_proved += 1;
    }
}

/// What the rows of proved batches are deleted with.
struct Deletion<'a> {
    deleter: &'a mut Deleter,
    prover: &'a Prover,
    gate: Gate,
    pace: Pace,
    progress: &'a Progress,
}

impl Deletion<'_> {
    /// Deletes what may go of a batch; returns early when asked to stop.
    async fn batch(
        &mut self,
        proved: Proved,
        shutdown: &mut Shutdown,
        outcome: &mut Outcome,
    ) -> anyhow::Result<()> {
        let Proved { batch, mut proof, mut comparison, places } = proved;
        let (mut next, mut in_vain) = (0, 0);
        while next < places.len() {
            let end = places.len().min(next + self.deleter.chunk_size.rows());
            let load = Load { rows: (end - next) as u64, raw_bytes: 0 };
            if self.gate.pass(self.progress, shutdown).await?.is_none()
                || self.pace.admit(load, self.progress, shutdown).await.is_none()
            {
                return Ok(());
            }
            if !proof.is_fresh() {
                proof = match self.prover.renew(&batch).await? {
                    Ok(proof) => proof,
                    Err(why) => {
                        outcome.is_not_proved(batch.id, &why);
                        return Ok(());
                    }
                };
            }
            let piece = Piece { batch: &batch, proof: &proof, places: &places[next..end] };
            match self.deleter.step(piece, &mut comparison).await? {
                Step::Done(deleted) => {
                    self.progress.seen.fetch_add((end - next) as u64, Ordering::Relaxed);
                    self.progress.sent.fetch_add(deleted.purged, Ordering::Relaxed);
                    outcome.deleted.add(deleted);
                    (next, in_vain) = (end, 0);
                }
                Step::TimedOut | Step::ProofTooOld if in_vain < IN_VAIN_MAX => in_vain += 1,
                Step::TimedOut | Step::ProofTooOld | Step::NotOurs => {
                    tracing::warn!(
                        "batch {}: somebody else holds its rows or its place in the ledger; it is \
                         left for another time",
                        batch.id
                    );
                    outcome.left += 1;
                    return Ok(());
                }
            }
        }
        outcome.batches += 1;
        Ok(())
    }
}

impl Execution<'_> {
    /// Deletes; a first SIGINT or SIGTERM finishes what is in flight.
    pub async fn run(mut self) -> Result<Exit, Ended> {
        let target = &self.settings.target;
        let target = Writable::connect(target, 3, self.settings.write_limits).await;
        let target = target.map_err(|error| Ended { exit: Exit::Preflight, error })?;
        let identity = target.identity().await?;
        // In another database the rows would only seem to be gone.
        self.ledger.recognise(&identity.as_source(), false).await?;
        let is_one_database = self.ledger.is_in(&identity).await?;
        let plans = std::mem::take(&mut self.plans);
        let mut outcomes = Vec::new();
        for plan in &plans {
            if self.shutdown.is_asked() {
                break;
            }
            let table = plan.shape.table;
            if table == Table::Runs && self.nodes_are_read_by_run().await? {
                tracing::warn!(
                    "{table}: nothing is deleted while a pass of workflow_node_executions is open \
                     that finds its rows by these runs\nhint: let `run` finish it first"
                );
                continue;
            }
            self.confirm(plan)?;
            let outcome = self.table(plan, &target, is_one_database).await?;
            if self.settings.vacuum && outcome.deleted.purged > 0 && !self.shutdown.is_asked() {
                tracing::info!("{table}: VACUUM (ANALYZE)");
                target.vacuum(table).await?;
            }
            outcomes.push((table, outcome));
        }
        self.print(&outcomes);
        Ok(self.conclude(&outcomes))
    }

    async fn nodes_are_read_by_run(&self) -> anyhow::Result<bool> {
        let open = self.ledger.open_pass(Table::NodeExecutions).await?;
        Ok(open.is_some_and(|pass| pass.plan.order == KeyOrder::ByRun))
    }

    /// Has a person type the table's name, unless `--yes` was said.
    fn confirm(&self, plan: &TablePlan) -> Result<(), Ended> {
        let (table, rows) = (plan.shape.table, plan.total().proved);
        if self.settings.yes || rows == 0 {
            return Ok(());
        }
        let refuse = |hint: &str| {
            let error = anyhow::anyhow!(
                "deleting {} rows of {table} was not confirmed\nnothing was deleted of it\nhint: {hint}",
                count(rows)
            );
            Err(Ended { exit: Exit::Usage, error })
        };
        if !std::io::stdin().is_terminal() {
            return refuse("say --yes where nobody sits at a terminal");
        }
        let mut error = std::io::stderr().lock();
        let _ = write!(error, "Type {table} to delete {} rows of it: ", count(rows))
            .and_then(|()| error.flush());
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        read.context("read the confirmation")?;
        if line.trim() == table.name() { Ok(()) } else { refuse("type the table's whole name") }
    }

    async fn table(
        &mut self,
        plan: &TablePlan,
        target: &Writable,
        is_one_database: bool,
    ) -> Result<Outcome, Ended> {
        let table = plan.shape.table;
        let progress = Progress::new(table, plan.total().proved);
        let report =
            Arc::clone(&progress).report(self.screen.clone(), self.settings.progress_every);
        let reporter = tokio::spawn(report);
        let mut deleter = Deleter {
            ledger: self.ledger.clone(),
            target: target.clone(),
            is_one_database,
            rules: self.settings.rules,
            chunk_size: ChunkSize::default(),
        };
        let outcome = self.batches(plan, &mut deleter, &progress).await;
        reporter.abort();
        // The reporter's bar must be gone before anything else is written.
        let _ = reporter.await;
        Ok(outcome?)
    }

    async fn batches(
        &mut self,
        plan: &TablePlan,
        deleter: &mut Deleter,
        progress: &Progress,
    ) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome::default();
        let Some(equal_days) = self.equal_days(plan).await? else { return Ok(outcome) };
        let prover = self.prover(plan, equal_days);
        let mut deletion = Deletion {
            gate: Gate::new(deleter.target.clone(), plan.shape.table, self.settings.gate),
            pace: Pace::new(self.settings.rates, 1, 1),
            deleter,
            prover: &prover,
            progress,
        };
        let mut candidates = prover.clone().start();
        while let Some(candidate) = self.shutdown.or(candidates.next()).await {
            let Some(candidate) = candidate? else { break };
            match candidate {
                Candidate::Proved(proved) => {
                    let id = proved.batch.id;
                    deletion
                        .batch(*proved, &mut self.shutdown, &mut outcome)
                        .await
                        .with_context(|| format!("purge batch {id}"))?;
                }
                Candidate::NotKept => {
                    outcome.not_kept += 1;
                }
                Candidate::NotFound => {
                    outcome.not_found += 1;
                }
                Candidate::NotComparable(id, why) => {
                    tracing::warn!("batch {id} stays in Postgres: {why}");
                    outcome.not_comparable += 1;
                }
                Candidate::NotProved(id, why) => {
                    outcome.is_not_proved(id, &why);
                }
            }
        }
        Ok(outcome)
    }

    fn prover(&self, plan: &TablePlan, equal_days: BTreeSet<Day>) -> Prover {
        Prover {
            ledger: self.ledger.clone(),
            client: self.client.clone(),
            keeping: plan.keeping,
            equal_days,
            fresh_for: self.settings.proof_age_max,
            comparing: Comparing {
                columns: plan.shape.columns.clone(),
                has_offload: plan.shape.has_offload,
                has_pauses: plan.footprint.has_pauses,
                tenant_id: self.settings.tenant_id,
                app_id: self.settings.app_id,
                window: plan.window.clone(),
            },
        }
    }

    /// The days of which SLS's search finds every row once; `None` when asked to stop.
    async fn equal_days(&mut self, plan: &TablePlan) -> anyhow::Result<Option<BTreeSet<Day>>> {
        let parts = CountsParts {
            table: plan.shape.table,
            source: self.source.clone(),
            ledger: self.ledger.clone(),
            client: self.client.clone(),
            // Its rows are no rows that are purged.
            progress: Progress::new(plan.shape.table, 0),
            kept_since: None,
            since: None,
            until: None,
        };
        equal_days(&parts, &mut self.shutdown).await
    }

    fn print(&self, outcomes: &[(Table, Outcome)]) {
        if self.settings.format == Format::Json {
            let tables: serde_json::Map<_, _> = outcomes
                .iter()
                .map(|(table, outcome)| (table.name().to_owned(), as_json(outcome)))
                .collect();
            output::line(&json!({"schema_version": 1, "purged": tables}).to_string());
            return;
        }
        for (table, outcome) in outcomes {
            let Outcome { deleted, batches, .. } = outcome;
            output::line(&format!(
                "{table}: {} rows deleted in {} batches, {} were gone already, {} stay because they \
                 changed",
                count(deleted.purged),
                count(*batches),
                count(deleted.gone),
                count(deleted.changed.len() as u64),
            ));
            for (reason, rows) in &deleted.kept {
                output::line(&format!("    {} stay: {}", count(*rows), reason.reason()));
            }
            for (batches, why) in [
                (outcome.not_proved, "SLS does not hold them as they were sent"),
                (outcome.not_comparable, "their rows cannot be compared with their logs"),
                (outcome.not_kept, "SLS does not keep them long enough"),
                (
                    outcome.not_found,
                    "SLS's search does not find every row of their days once (verify --level counts)",
                ),
                (outcome.left, "somebody else was at work on them"),
            ] {
                if batches > 0 {
                    output::line(&format!("    {} batches stay: {why}", count(batches)));
                }
            }
            for id in deleted.changed.iter().take(LISTED_ROWS_MAX) {
                output::line(&format!("    changed: {id}"));
            }
            if !deleted.changed.is_empty() {
                output::line("    `repair --changed` can send them as they are now");
            }
        }
    }

    /// Says how the purge ended.
    fn conclude(&self, outcomes: &[(Table, Outcome)]) -> Exit {
        let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(|(_, o)| of(o)).sum::<u64>();
        let not_proved = sum(|outcome| outcome.not_proved + outcome.not_found);
        if not_proved > 0 {
            tracing::error!(
                "{} batches are not in SLS as they were sent, or not found there; their rows are \
                 still in Postgres\n\
                 hint: `dify-sls-backfill verify` says what is wrong, and what to do about it",
                count(not_proved)
            );
            return Exit::Difference;
        }
        if self.shutdown.is_asked() || sum(|outcome| outcome.left) > 0 {
            tracing::warn!(
                "stopped with work left; what was deleted was proved, and is in the ledger\n\
                 hint: run the same command again to go on"
            );
            return Exit::Unfinished;
        }
        Exit::Done
    }
}

fn as_json(outcome: &Outcome) -> serde_json::Value {
    let Outcome { deleted, batches, not_proved, not_comparable, not_kept, not_found, left } =
        outcome;
    let kept: serde_json::Map<_, _> = deleted
        .kept
        .iter()
        .map(|(reason, rows)| (format!("{reason:?}"), json!(rows.to_string())))
        .collect();
    json!({
        "rows_deleted": deleted.purged.to_string(), "rows_gone": deleted.gone.to_string(),
        "rows_changed": deleted.changed, "rows_kept": kept, "batches": batches.to_string(),
        "batches_not_proved": not_proved.to_string(),
        "batches_not_comparable": not_comparable.to_string(),
        "batches_not_kept": not_kept.to_string(), "batches_not_found": not_found.to_string(),
        "batches_left": left.to_string(),
    })
}
