//! One table of a run: its pass, its workers, the tail reader and the settler beside them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinHandle;

use crate::commands::exit::Ended;
use crate::commands::output::{bytes, count};
use crate::commands::setup::{self};
use crate::dify::conversion::{Conversion, LogTime};
use crate::ledger::hold::HeldPass;
use crate::ledger::lost::Reheld;
use crate::ledger::pass::{Pass, PassPlan};
use crate::ledger::sighting::{Comparison, Difference};
use crate::pipeline::progress::Progress;
use crate::pipeline::read::preparer::PreparerParts;
use crate::pipeline::read::range_scan::ScanSettings;
use crate::pipeline::read::scanner::{Recount, ScannerParts};
use crate::pipeline::read::window::{can_go_on, plan, scope};
use crate::pipeline::recover::resolver::{Resolved, Resolver, ResolverParts};
use crate::pipeline::send::canary::Canaries;
use crate::pipeline::send::uploader::UploaderParts;
use crate::pipeline::shutdown::channel;
use crate::pipeline::verify::tail_reader::TailReader;
use crate::pipeline::worker::{Worker, WorkerParts};
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::source::catalog::Shape;

use crate::commands::run::{Outcome, Run};
use crate::commands::run_settings::Verify;

/// A pass to work on.
struct Job {
    pass_id: i64,
    conversion_id: i64,
    /// The conversion's JSON.
    conversion: serde_json::Value,
    /// Whether only its holds are to be tried.
    only_holds: bool,
}

impl Run<'_> {
    /// Moves what is to be moved of one table, and verifies it.
    pub(in crate::commands::run) async fn table(
        &mut self,
        shape: &Shape,
    ) -> Result<Outcome, Ended> {
        let table = shape.table;
        let pass = self.pass(shape).await?;
        self.resend_lost(table, &pass).await?;
        let mut tail_reader = TailReader::begin(&self.client, &self.ledger, table).await?;
        let (tail_stopper, tail_stop) = channel();
        let mut tail = match self.settings.verify {
            Verify::Tags => Some(tokio::spawn(tail_reader.clone().follow(tail_stop.clone()))),
            Verify::None => None,
        };
        // Before the first ANALYZE the planner guesses without knowing anything.
        let rows_estimated = match shape.rows_estimated {
            0 => 0,
            _ => self.source.rows_estimated(&scope(&pass.plan)).await?,
        };
        let rows_left = rows_estimated.saturating_sub(self.ledger.rows_seen(&pass).await?);
        let progress = Progress::new(table, rows_left);
        let resolver = self.resolver(shape, &pass, &tail_reader, &progress)?;
        let resolver = tokio::spawn(resolver.resolve(tail_stop));
        let report =
            Arc::clone(&progress).report(self.screen.clone(), self.settings.progress_every);
        let reporter = tokio::spawn(report);
        let worked = tokio::select! {
            worked = self.work(shape, &pass, &progress) => worked,
            // Who cannot read what is sent need not send on for hours.
            error = died(&mut tail) => Err(error),
        };
        reporter.abort();
        // The reporter's bar must be gone before anything else is written.
        let _ = reporter.await;
        tail_stopper.stop();
        let resolver = resolver.await.context("settle what is open")?;
        worked?;
        if let Some(tail) = tail {
            tail.await.context("follow the upload")??;
        }
        let resolved = resolver?.finish().await?;
        self.tell(table, &progress);
        tell_resolved(table, &resolved);

        let is_closed = self.ledger.close_pass(pass.id).await?;
        let sent = progress.sent.load(Ordering::Relaxed) + resolved.sent_rows;
        let mut outcome = Outcome { sent, differences: resolved.differ, ..Outcome::default() };
        if self.settings.verify == Verify::Tags {
            let comparison = tail_reader.finish(&self.shutdown).await?;
            // Who was asked to stop has not read to the end, and cannot tell what is missing.
            if !self.shutdown.is_asked() {
                outcome.differences += tell_comparison(table, &comparison);
            }
        }
        let open = self.ledger.intents(&self.process, table).await?;
        if open > 0 {
            tracing::warn!(
                "{table}: {open} batches may or may not be in SLS; the next run looks again"
            );
        }
        outcome.is_complete = is_closed && open == 0;
        Ok(outcome)
    }

    fn resolver(
        &self,
        shape: &Shape,
        pass: &Pass,
        tail_reader: &TailReader,
        progress: &Arc<Progress>,
    ) -> anyhow::Result<Resolver> {
        let conversion = serde_json::from_value(pass.conversion.clone())
            .context("read the pass's conversion from the ledger")?;
        let parts = ResolverParts {
            source: self.source.clone(),
            ledger: self.ledger.clone(),
            client: self.client.clone(),
            signing_lease: Arc::clone(&self.signing_lease),
            process: self.process.clone(),
            table: shape.table,
            tail_reader: tail_reader.clone(),
            guarantees: self.guarantees,
            memory: self.memory.clone(),
            progress: Arc::clone(progress),
            pace: Arc::clone(&self.pace),
            conversion_id: pass.conversion_id,
            conversion,
            settled_before: self.settled_before,
            nth: self.settings.workers as usize,
        };
        Resolver::new(parts, self.shutdown.clone())
    }

    fn tell(&self, table: Table, progress: &Progress) {
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let seconds = progress.elapsed().as_secs_f64().max(0.001);
        let raw = get(&progress.raw_bytes);
        let ledger = Duration::from_nanos(get(&progress.ledger_ns)).as_secs_f64();
        let ledger_share = 100.0 * ledger / seconds / f64::from(self.settings.workers);
        tracing::info!(
            "{table}: looked at {} rows, sent {} ({}, {} compressed) in {seconds:.1} s, {}/s; \
             {ledger_share:.1} % of the time was spent waiting for the ledger",
            count(get(&progress.seen)),
            count(get(&progress.sent)),
            bytes(raw),
            bytes(get(&progress.body_bytes)),
            bytes((raw as f64 / seconds) as u64),
        );
    }

    /// Holds the rows of lost batches, if somebody has said that they are to be sent again.
    async fn resend_lost(&self, table: Table, pass: &Pass) -> anyhow::Result<()> {
        if !self.settings.resend_lost {
            return Ok(());
        }
        let Reheld { batches, rows } = self.ledger.resend_lost(table, pass.id).await?;
        if batches > 0 {
            tracing::info!(
                "{table}: {} rows of {} lost batches are sent again",
                count(rows),
                count(batches)
            );
        }
        Ok(())
    }

    /// The open pass of the table, or a new one.
    async fn pass(&self, shape: &Shape) -> Result<Pass, Ended> {
        let conversion = setup::conversion(shape, self.settings.put_graph, self.settings.log_time);
        if let Some(open) = self.open_pass(shape.table, &conversion).await? {
            return Ok(open);
        }
        let covered = self.ledger.covered_until(shape.table).await?;
        let plan = plan(&self.settings.wish, shape, covered, self.settled_before)?;
        let body = serde_json::to_value(&conversion).context("write down the conversion")?;
        let Some(pass) = self.ledger.begin_pass(&plan, &body).await? else {
            let open = self.open_pass(shape.table, &conversion).await?;
            let gone = || anyhow::anyhow!("the pass of {} came and went", shape.table);
            return open.ok_or_else(|| gone().into());
        };
        let since = plan.since.map_or("the beginning".to_owned(), |since| since.to_string());
        tracing::info!(
            "{}: pass {}, rows created from {since} to {}, order {}",
            shape.table,
            pass.id,
            plan.until,
            plan.order.name()
        );
        Ok(pass)
    }

    /// The open pass, if there is one and it can go on.
    async fn open_pass(
        &self,
        table: Table,
        conversion: &Conversion,
    ) -> Result<Option<Pass>, Ended> {
        let Some(mut open) = self.ledger.open_pass(table).await? else { return Ok(None) };
        let mut begun_with: Conversion = serde_json::from_value(open.conversion.clone())
            .context("read the open pass's conversion from the ledger")?;
        if self.settings.new_conversion && begun_with != *conversion {
            let body = serde_json::to_value(conversion).context("write down the conversion")?;
            self.ledger.convert_anew(&mut open, body).await?;
            tracing::info!(
                "{table}: from now on {}",
                begun_with.differences(conversion).join(", and ")
            );
            begun_with = conversion.clone();
        }
        let wish = &self.settings.wish;
        if can_go_on(&open.plan, open.begun, &begun_with, wish, conversion)? {
            tracing::info!("{table}: going on with pass {}", open.id);
            return Ok(Some(open));
        }
        self.ledger.drop_pass(&open).await?;
        Ok(None)
    }

    /// Tries held rows again, then moves the pass.
    async fn work(
        &self,
        shape: &Shape,
        pass: &Pass,
        progress: &Arc<Progress>,
    ) -> anyhow::Result<()> {
        if !self.settings.join {
            let current: Conversion = serde_json::from_value(pass.conversion.clone())
                .context("read the pass's conversion from the ledger")?;
            for held in self.ledger.held_passes(shape.table, self.abandoned_before).await? {
                self.ledger.add_holds_range(held.pass_id).await?;
                // The holds of the open pass are one of its ranges.
                if held.pass_id != pass.id {
                    let HeldPass { pass_id, conversion_id, conversion } = held;
                    let plan = pass.plan.clone();
                    let mut held =
                        Pass { id: pass_id, plan, conversion_id, conversion, begun: true };
                    let begun_with: Conversion = serde_json::from_value(held.conversion.clone())
                        .context("read a pass's conversion from the ledger")?;
                    // Nobody can go on by rules or columns that are no more.
                    let is_over = !begun_with.can_be_repeated(&current);
                    if is_over || self.settings.new_conversion && held.conversion != pass.conversion
                    {
                        self.ledger.convert_anew(&mut held, pass.conversion.clone()).await?;
                    }
                    let Pass { conversion_id, conversion, .. } = held;
                    let job = Job { pass_id, conversion_id, conversion, only_holds: true };
                    self.workers(shape, job, &pass.plan, progress).await?;
                }
            }
        }
        let job = Job {
            pass_id: pass.id,
            conversion_id: pass.conversion_id,
            conversion: pass.conversion.clone(),
            only_holds: false,
        };
        self.workers(shape, job, &pass.plan, progress).await
    }

    /// The canaries of the table; none if nothing is to be checked.
    async fn canaries(&self, table: Table) -> anyhow::Result<Option<Arc<Canaries>>> {
        if self.settings.verify == Verify::None {
            return Ok(None);
        }
        let Self { client, ledger, settings, .. } = self;
        Ok(Some(Arc::new(Canaries::new(client, ledger, table, settings.canary).await?)))
    }

    async fn workers(
        &self,
        shape: &Shape,
        job: Job,
        plan: &PassPlan,
        progress: &Arc<Progress>,
    ) -> anyhow::Result<()> {
        let parts = self.worker_parts(shape, job, plan, progress).await?;
        let mut workers = tokio::task::JoinSet::new();
        for nth in 0..self.settings.workers as usize {
            let worker = Worker::new(parts.clone(), progress, &self.shutdown, nth)?;
            workers.spawn(worker.work());
        }
        // The first error ends all: dropping the set aborts the others, and their intents are in
        // the ledger.
        while let Some(ended) = workers.join_next().await {
            ended.context("a worker ended badly")??;
        }
        Ok(())
    }

    async fn worker_parts(
        &self,
        shape: &Shape,
        job: Job,
        plan: &PassPlan,
        progress: &Arc<Progress>,
    ) -> anyhow::Result<WorkerParts> {
        let conversion: Conversion = serde_json::from_value(job.conversion)
            .context("read a pass's conversion from the ledger")?;
        let settings = self.settings;
        let is_verified = settings.verify != Verify::None;
        let kept_since = self.kept.get(&shape.table).copied();
        let live_since = self.live_since.get(&shape.table).copied();
        Ok(WorkerParts {
            scanner: ScannerParts {
                ledger: self.ledger.clone(),
                process: self.process.clone(),
                pass_id: job.pass_id,
                scan: ScanSettings {
                    source: self.source.clone(),
                    ledger: Some(self.ledger.clone()),
                    shape: shape.clone(),
                    limits: settings.limits.clone(),
                    settled_before: self.settled_before,
                    abandoned_before: self.abandoned_before,
                    live_since,
                    kept_since: kept_since.filter(|_| conversion.log_time == LogTime::FinishedAt),
                },
                scope: scope(plan),
                range_rows: settings.range_rows,
                workers: settings.workers,
                recount: if is_verified { Recount::Yes } else { Recount::No },
                rows: self.rows.clone(),
                health: Arc::clone(&self.health),
                progress: Arc::clone(progress),
                only_holds: job.only_holds,
                cutting: Arc::default(),
            },
            preparer: PreparerParts {
                source: self.source.clone(),
                seal: self.ledger.seal,
                conversion_id: job.conversion_id,
                conversion,
                settled_before: self.settled_before,
                client: self.client.clone(),
                memory: self.memory.clone(),
            },
            uploader: UploaderParts {
                table: shape.table,
                ledger: self.ledger.clone(),
                client: self.client.clone(),
                process: self.process.clone(),
                signing_lease: Arc::clone(&self.signing_lease),
                guarantees: self.guarantees,
                pace: Arc::clone(&self.pace),
                canaries: self.canaries(shape.table).await?,
                progress: Arc::clone(progress),
            },
        })
    }
}

/// Waits for the tail reader to fail; for ever if there is none, or if it does not fail.
async fn died(tail: &mut Option<JoinHandle<anyhow::Result<()>>>) -> anyhow::Error {
    let Some(running) = tail.as_mut() else { return std::future::pending().await };
    let ended = running.await.context("follow the upload").and_then(|ended| ended);
    *tail = None;
    match ended {
        Err(error) => error,
        Ok(()) => std::future::pending().await,
    }
}

/// Tells what became of batches whose fate was open.
fn tell_resolved(table: Table, resolved: &Resolved) {
    let Resolved { found, sent, halved, abandoned, refused_rows, open, next_at, .. } = resolved;
    if [found, sent, halved, abandoned, open].iter().any(|batches| **batches > 0) {
        tracing::info!(
            "{table}: batches that were in the air: {found} found in SLS, {sent} sent again, \
             {halved} halved, {abandoned} read anew, {open} still open"
        );
    }
    if *refused_rows > 0 {
        tracing::warn!("{table}: SLS refuses {refused_rows} rows; they are held");
    }
    if let Some(at) = next_at.filter(|_| *open > 0) {
        let at = Timestamp::from_unix_s(at);
        tracing::info!("{table}: until {at} (UTC) a request may still be on its way to SLS");
    }
}

/// Tells what the comparison of the ledger with SLS gave; gives the number of differences.
fn tell_comparison(table: Table, comparison: &Comparison) -> u64 {
    let differences = comparison.differences.len() as u64;
    tracing::info!(
        "{table}: pulled back and compared: {} batches with {} rows are equal, {} differ",
        count(comparison.batches_equal),
        count(comparison.rows_equal),
        count(differences),
    );
    for Difference { batch_id, rows, found } in comparison.differences.iter().take(20) {
        tracing::error!("batch {batch_id}: SLS should hold {rows} rows of it, it holds {found}");
    }
    differences
}
