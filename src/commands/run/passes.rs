//! One table of a run: its pass, its workers, the tail reader and the resolver beside them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinHandle;

use crate::commands::difference::Difference;
use crate::commands::exit::Ended;
use crate::commands::output::{bytes, count};
use crate::commands::retention::Kept;
use crate::commands::setup::{self};
use crate::commands::shards;
use crate::dify::conversion::{Conversion, LogTime};
use crate::dify::eligibility::Bounds;
use crate::ledger::hold::HoldsToTry;
use crate::ledger::lost::Reheld;
use crate::ledger::pass::{LOOK_BACK_S, Pass};
use crate::ledger::sighting::{Comparison, DifferingBatch};
use crate::pipeline::guard::live_writer::LivePeriod;
use crate::pipeline::progress::Progress;
use crate::pipeline::read::preparer::PreparerParts;
use crate::pipeline::read::range_scan::ScanSettings;
use crate::pipeline::read::recount::Recount;
use crate::pipeline::read::scanner::ScannerParts;
use crate::pipeline::read::window::{Standing, can_go_on, plan, scope};
use crate::pipeline::recover::resolver::{BEHIND, Resolved, Resolver, ResolverParts};
use crate::pipeline::retry::with_retries;
use crate::pipeline::send::canary::Canaries;
use crate::pipeline::send::lane_keeper::writable;
use crate::pipeline::send::lanes::Lanes;
use crate::pipeline::send::uploader::UploaderParts;
use crate::pipeline::shutdown::channel;
use crate::pipeline::verify::tail_reader::TailReader;
use crate::pipeline::worker::{Worker, WorkerParts};
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::source::catalog::Shape;

use crate::commands::run::{Outcome, Run};
use crate::commands::run_settings::Verify;

/// How often it is looked whether more workers would find work.
const WORKERS_EVERY: Duration = Duration::from_millis(100);

impl Run<'_> {
    /// Sends what is to be sent of one table, and verifies it.
    pub(in crate::commands::run) async fn table(
        &mut self,
        shape: &Shape,
    ) -> Result<Outcome, Ended> {
        let table = shape.table;
        let pass = self.pass(shape).await?;
        self.resend_lost(table, &pass).await?;
        self.tell_live_look(shape, &pass).await?;
        if !self.settings.join && !pass.is_read_again {
            self.ledger.forget_cut_holds(pass.id).await?;
        }
        let mut tail_reader = TailReader::begin(&self.client, &self.ledger, table).await?;
        let (tail_stopper, tail_stop) = channel();
        let mut tail = match self.settings.verify {
            Verify::Tags => Some(tokio::spawn(tail_reader.clone().follow(tail_stop.clone()))),
            Verify::None => None,
        };
        let rows_expected = self.source.rows_expected(&scope(&pass.plan), shape).await?;
        let rows_left = rows_expected.saturating_sub(self.ledger.rows_seen(&pass).await?);
        let progress = Progress::new(table, rows_left);
        if let Some(shards) = self.settings.split_shards {
            shards::split(&self.client, table.logstore(), shards, &self.shutdown).await?;
        }
        let shards = with_retries(|| self.client.shards(table.logstore())).await;
        self.pace.begin(&writable(&shards.context("list the shards")?));
        let resolver = self.resolver(shape, &pass, &tail_reader, &progress)?;
        let resolver = tokio::spawn(resolver.resolve(tail_stop));
        let report =
            Arc::clone(&progress).report(self.screen.clone(), self.settings.progress_every);
        let reporter = tokio::spawn(report);
        let worked = tokio::select! {
            worked = self.work(shape, pass, &progress) => worked,
            // Who cannot read what is sent need not send on for hours.
            error = died(&mut tail) => Err(error.into()),
        };
        reporter.abort();
        // The reporter's bar must be gone before anything else is written.
        let _ = reporter.await;
        tail_stopper.stop();
        let resolver = resolver.await.context("resolve batches in doubt")?;
        let is_closed = worked?;
        if let Some(tail) = tail {
            tail.await.context("read back what was sent")??;
        }
        let resolved = resolver?.finish().await?;
        self.report(table, &progress);
        report_resolved(table, &resolved);

        let sent = progress.sent.load(Ordering::Relaxed) + resolved.sent_rows;
        let mut outcome = Outcome { sent, ..Outcome::default() };
        if resolved.differ > 0 {
            outcome.differences.insert(Difference::Changed, resolved.differ);
        }
        if self.settings.verify == Verify::Tags {
            let comparison = tail_reader.finish(&self.shutdown).await?;
            // Who was asked to stop has not read to the end, and cannot tell what is missing.
            if !self.shutdown.is_asked() {
                outcome.add_differences(report_comparison(table, &comparison));
            }
        }
        let open = self.ledger.intents(&self.process, table).await?;
        if open > 0 {
            tracing::warn!(
                "{table}: {open} batches are in doubt: they may or may not be in SLS; the next run \
                 looks again"
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
        let conversion = conversion_of(pass)?;
        let parts = ResolverParts {
            source: self.source.clone(),
            ledger: self.ledger.clone(),
            client: self.client.clone(),
            signing_lease: Arc::clone(&self.signing_lease),
            process: self.process.clone(),
            table: shape.table,
            tail_reader: tail_reader.clone(),
            guarantees: self.guarantees,
            behind_at: self.behind_at.get(&shape.table).copied(),
            memory: self.memory.clone(),
            progress: Arc::clone(progress),
            pace: Arc::clone(&self.pace),
            conversion_id: pass.conversion_id,
            bounds: self.bounds(shape.table, &conversion),
            conversion,
            shape: shape.clone(),
            limits: self.settings.limits.clone(),
            nth: self.settings.workers.at_first as usize,
        };
        Resolver::new(parts, self.shutdown.clone())
    }

    fn report(&self, table: Table, progress: &Progress) {
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let seconds = progress.elapsed().as_secs_f64().max(0.001);
        let raw = get(&progress.raw_bytes);
        let ledger = Duration::from_nanos(get(&progress.ledger_ns)).as_secs_f64();
        let ledger_share = 100.0 * ledger / seconds / f64::from(self.settings.workers.at_first);
        tracing::info!(
            "{table}: {} rows seen, {} sent ({}, {} compressed) in {seconds:.1} s, {}/s; \
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
        let Reheld { batches, rows } =
            self.ledger.resend_lost(table, pass.id, &self.process).await?;
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
        let read_until = self.ledger.read_until(shape.table).await?;
        let settled_before = self.now.plus_s(-self.settings.settle_s);
        let plan = plan(&self.settings.wish, shape, read_until, settled_before)?;
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
        let mut begun_with = conversion_of(&open)?;
        // What is read again may be sent as a new pass would send it.
        if (self.settings.new_conversion || open.is_read_again) && begun_with != *conversion {
            let body = serde_json::to_value(conversion).context("write down the conversion")?;
            self.ledger.convert_anew(&mut open, body).await?;
            tracing::info!(
                "{table}: from now on {}",
                begun_with.differences(conversion).join(", and ")
            );
            begun_with = conversion.clone();
        }
        if open.is_read_again {
            tracing::info!("{table}: going on with pass {}, which is read again", open.id);
            return Ok(Some(open));
        }
        let wish = &self.settings.wish;
        let standing = match (self.settings.join, open.begun) {
            (true, _) => Standing::Joined,
            (false, true) => Standing::Begun,
            (false, false) => Standing::Fresh,
        };
        if can_go_on(&open.plan, standing, &begun_with, wish, conversion)? {
            tracing::info!("{table}: continuing pass {}", open.id);
            return Ok(Some(open));
        }
        self.ledger.drop_pass(&open).await?;
        Ok(None)
    }

    /// Moves the pass, and what is to be read again of finished ones; gives whether all of it is done.
    async fn work(
        &self,
        shape: &Shape,
        mut pass: Pass,
        progress: &Arc<Progress>,
    ) -> Result<bool, Ended> {
        loop {
            self.workers(shape, &pass, progress).await?;
            if !self.ledger.close_pass(pass.id).await? {
                return Ok(false);
            }
            if !pass.is_read_again {
                break;
            }
            // The rows that are new have waited for it.
            pass = self.pass(shape).await?;
        }
        let table = shape.table;
        let conversion = setup::conversion(shape, self.settings.put_graph, self.settings.log_time);
        let kept_since = self.kept(table).since();
        for pass_id in self.ledger.passes_to_read_again(table, kept_since, &self.process).await? {
            let ranges = self.ledger.read_again(pass_id, kept_since, &self.process).await?;
            if ranges > 0 {
                tracing::info!(
                    "{table}: {ranges} ranges of pass {pass_id} are read again, for rows that were \
                     older than their logstore kept logs or that no reading has seen"
                );
            }
            // Another process may have opened it meanwhile, or closed it.
            let open = self.open_pass(table, &conversion).await?;
            let Some(pass) = open.filter(|open| open.id == pass_id) else { continue };
            self.workers(shape, &pass, progress).await?;
            if !self.ledger.close_pass(pass.id).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Which rows' logs the table's logstore keeps.
    pub(in crate::commands::run) fn kept(&self, table: Table) -> Kept {
        self.kept.get(&table).copied().unwrap_or(Kept::Unknown)
    }

    /// By what rows are judged whose logs are made by `conversion`.
    fn bounds(&self, table: Table, conversion: &Conversion) -> Bounds {
        let kept_since = self.kept(table).bound();
        Bounds {
            settled_before: self.now.plus_s(-self.settings.settle_s),
            kept_since: kept_since.filter(|_| conversion.log_time == LogTime::FinishedAt),
            live_since: self.live.get(&table).map(LivePeriod::since),
            abandoned_before: self.now.plus_s(-self.settings.abandoned_after_s),
            row_bytes_max: self.settings.row_bytes_max,
        }
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
        pass: &Pass,
        progress: &Arc<Progress>,
    ) -> anyhow::Result<()> {
        let parts = self.worker_parts(shape, pass, progress).await?;
        let mut workers = tokio::task::JoinSet::new();
        let work = || anyhow::Ok(Worker::new(parts.clone(), progress, &self.shutdown)?.work());
        for _ in 0..self.settings.workers.at_first {
            workers.spawn(work()?);
        }
        let mut looks = tokio::time::interval(WORKERS_EVERY);
        let mut is_told = false;
        // The first error ends all: dropping the set aborts the others, and their intents are in
        // the ledger.
        loop {
            tokio::select! {
                ended = workers.join_next() => match ended {
                    Some(ended) => ended.context("a worker ended badly")??,
                    None => return Ok(()),
                },
                _ = looks.tick() => {
                    let at_work = u32::try_from(workers.len())?;
                    let may_more = at_work < self.settings.workers.at_most && !progress.is_ending();
                    if may_more && self.pace.wants_workers(at_work) {
                        workers.spawn(work()?);
                    }
                    if !is_told && let Some(limit) = self.pace.limit() {
                        is_told = true;
                        tracing::info!("{}", shards::limit_text(shape.table, &limit, progress.rest_s()));
                    }
                }
            }
        }
    }

    async fn worker_parts(
        &self,
        shape: &Shape,
        pass: &Pass,
        progress: &Arc<Progress>,
    ) -> anyhow::Result<WorkerParts> {
        let (table, settings, conversion) = (shape.table, self.settings, conversion_of(pass)?);
        let is_verified = settings.verify != Verify::None;
        let (source, scope) = (self.source.clone(), scope(&pass.plan));
        let bounds = self.bounds(table, &conversion);
        Ok(WorkerParts {
            scanner: ScannerParts {
                ledger: self.ledger.clone(),
                process: self.process.clone(),
                pass_id: pass.id,
                scan: ScanSettings {
                    source: source.clone(),
                    ledger: Some(self.ledger.clone()),
                    shape: shape.clone(),
                    limits: settings.limits.clone(),
                    bounds: bounds.of_looked_up(),
                    live_look: self.live_look(table, progress),
                    missed_before: self.now.plus_s(-LOOK_BACK_S),
                },
                scope: scope.clone(),
                range_rows: settings.range_rows,
                workers: settings.workers.at_first,
                rows: self.rows.clone(),
                health: Arc::clone(&self.health),
                pace: Arc::clone(&self.pace),
                progress: Arc::clone(progress),
                holds: HoldsToTry {
                    kept_since: self.kept(table).since(),
                    in_turn_max: settings.held_rows_max,
                },
                cutting: Arc::default(),
            },
            preparer: PreparerParts {
                source: self.source.clone(),
                seal: self.ledger.seal,
                conversion_id: pass.conversion_id,
                conversion,
                shape: shape.clone(),
                bounds,
                client: self.client.clone(),
                memory: self.memory.clone(),
                pace: Arc::clone(&self.pace),
            },
            uploader: UploaderParts {
                table: shape.table,
                ledger: self.ledger.clone(),
                client: self.client.clone(),
                process: self.process.clone(),
                signing_lease: Arc::clone(&self.signing_lease),
                guarantees: self.guarantees,
                pace: Arc::clone(&self.pace),
                lanes: Arc::new(Lanes::new(
                    &self.client,
                    &self.ledger,
                    &self.process,
                    shape.table.logstore(),
                )),
                canaries: self.canaries(shape.table).await?,
                recount: is_verified.then_some(Recount { source, scope }),
                progress: Arc::clone(progress),
            },
        })
    }
}

fn conversion_of(pass: &Pass) -> anyhow::Result<Conversion> {
    serde_json::from_value(pass.conversion.clone())
        .with_context(|| format!("read the conversion of pass {} from the ledger", pass.id))
}

/// Waits for the tail reader to fail; for ever if there is none, or if it does not fail.
async fn died(tail: &mut Option<JoinHandle<anyhow::Result<()>>>) -> anyhow::Error {
    let Some(running) = tail.as_mut() else { return std::future::pending().await };
    let ended = running.await.context("read back what was sent").and_then(|ended| ended);
    *tail = None;
    match ended {
        Err(error) => error,
        Ok(()) => std::future::pending().await,
    }
}

/// Reports what became of batches in doubt.
fn report_resolved(table: Table, resolved: &Resolved) {
    let Resolved { found, sent, halved, abandoned, refused_rows, open, behind, next_at, .. } =
        resolved;
    if [found, sent, halved, abandoned, open].iter().any(|batches| **batches > 0) {
        tracing::info!(
            "{table}: batches in doubt: {found} found in SLS, {sent} sent again, {halved} halved, \
             {abandoned} read again, {open} still in doubt"
        );
    }
    if *refused_rows > 0 {
        tracing::warn!("{table}: SLS refuses {refused_rows} rows; they are held");
    }
    if *behind > 0 {
        tracing::warn!("{table}: {BEHIND}: {behind} of these are not sent again yet");
    } else if let Some(at) = next_at.filter(|_| *open > 0) {
        let at = Timestamp::from_unix_s(at);
        tracing::info!("{table}: until {at} (UTC) a request may still be on its way to SLS");
    }
}

/// Tells what the comparison of the ledger with SLS gave; gives how many batches differ, by kind.
fn report_comparison(table: Table, comparison: &Comparison) -> BTreeMap<Difference, u64> {
    let mut kinds = BTreeMap::new();
    tracing::info!(
        "{table}: read back and compared: {} batches with {} rows are equal, {} differ",
        count(comparison.batches_equal),
        count(comparison.rows_equal),
        count(comparison.differences.len() as u64),
    );
    for differing in &comparison.differences {
        let DifferingBatch { rows, found, settled_ago_s, .. } = *differing;
        *kinds.entry(Difference::of_batch(rows, found, settled_ago_s)).or_default() += 1;
    }
    for DifferingBatch { batch_id, rows, found, .. } in comparison.differences.iter().take(20) {
        tracing::error!("batch {batch_id}: SLS should hold {rows} rows of it, it holds {found}");
    }
    kinds
}
