//! `run`: migrates what is to be migrated, goes on where the last run stopped, and verifies.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::task::JoinHandle;

use crate::commands::dry_run::dry_run;
use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::output::{Format, bytes, count};
use crate::commands::retention;
use crate::commands::setup::{self, PostgresSettings, SlsSettings};
use crate::commands::{rejects, status};
use crate::dify::conversion::{Conversion, LogTime};
use crate::ledger::Ledger;
use crate::ledger::epoch::Seqid;
use crate::ledger::hold::HeldPass;
use crate::ledger::pass::{Pass, PassPlan};
use crate::ledger::process::{HEARTBEAT, LEASE, Process};
use crate::ledger::tail::{Difference, Judgement};
use crate::pg;
use crate::pipeline::budget::{MemoryBudget, RowBudget};
use crate::pipeline::canary::{Canaries, CanarySettings, Unkept};
use crate::pipeline::cut::BatchLimits;
use crate::pipeline::epoch::Epoch;
use crate::pipeline::feed::FeedSettings;
use crate::pipeline::follow::Follower;
use crate::pipeline::health::HealthGate;
use crate::pipeline::pace::{Pace, Rates};
use crate::pipeline::probe::{self, Probed, probe};
use crate::pipeline::progress::Progress;
use crate::pipeline::progress::screen::Screen;
use crate::pipeline::settle::{Windows, World};
use crate::pipeline::settler::{Settled, Settler, SettlerParts};
use crate::pipeline::stop::{Stop, channel};
use crate::pipeline::window::{Clocks, Wish, can_go_on, plan, scope};
use crate::pipeline::worker::{Recount, Shared, Worker};
use crate::record::hold::HoldReason;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::sls::answer::{Failure, Next};
use crate::sls::client::Client;
use crate::source::Source;
use crate::source::catalog::Shape;
use crate::told::told;

/// How the upload is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Not at all.
    None,
    /// Every batch is pulled back, its count and digest compared with the ledger.
    Tags,
}

/// What `run` needs to know.
pub struct RunSettings {
    pub postgres: PostgresSettings,
    /// `None` in a dry run.
    pub sls: Option<SlsSettings>,
    pub tables: Vec<Table>,
    pub wish: Wish,
    pub rows_max: Option<u64>,
    pub workers: u32,
    pub rates: Rates,
    /// A replica of the source may be that far behind; `None`: as far as it likes.
    pub replica_lag_max_s: Option<u32>,
    /// How often progress is told where there are no bars.
    pub progress_every: Duration,
    pub limits: BatchLimits,
    pub memory_bytes: u64,
    /// About how many rows a range has.
    pub range_rows: u32,
    pub settle_s: i64,
    pub abandoned_after_s: i64,
    pub windows: Windows,
    pub put_graph: bool,
    pub log_time: LogTime,
    /// Send also rows that are older than their logstore keeps logs.
    pub beyond_ttl: bool,
    pub canary: CanarySettings,
    /// Go on with an open pass although the conversion has changed.
    pub new_conversion: bool,
    pub verify: Verify,
    pub join: bool,
    pub dry_run: bool,
    /// Whether to probe by itself where no probe was made yet.
    pub probe: bool,
    pub allow_fsync_off: bool,
    /// Where to write the rows that something is wrong with.
    pub rejects: Option<PathBuf>,
    /// A rejects file whose rows are to be tried again.
    pub retry: Option<PathBuf>,
    pub format: Format,
}

/// What a run works with from its beginning to its end.
struct Run<'a> {
    settings: &'a RunSettings,
    screen: &'a Screen,
    source: Source,
    ledger: Ledger,
    client: Client,
    world: World,
    memory: MemoryBudget,
    process: Process,
    settled_before: Timestamp,
    abandoned_before: Timestamp,
    /// Since when rows must have finished for their logs to be kept.
    kept: BTreeMap<Table, Timestamp>,
    rows: RowBudget,
    pace: Arc<Pace>,
    health: Arc<HealthGate>,
    stop: Stop,
}

/// A pass to work on.
struct Job {
    pass_id: i64,
    conversion_id: i64,
    /// The conversion's JSON.
    conversion: serde_json::Value,
    /// Whether only its holds are to be tried.
    only_holds: bool,
}

/// What came of one table.
#[derive(Debug, Clone, Copy, Default)]
struct Outcome {
    /// Rows sent by this run.
    sent: u64,
    /// Whether the pass is done, and no batch open.
    is_complete: bool,
    /// Batches that SLS does not hold as the ledger says.
    differences: u64,
}

/// Runs; a first SIGINT or SIGTERM finishes what is in flight.
pub async fn run(settings: &RunSettings, screen: &Screen, stop: Stop) -> Result<Exit, Ended> {
    let Some(sls) = settings.sls.as_ref().filter(|_| !settings.dry_run) else {
        return dry_run(settings, screen, &stop).await;
    };
    let source = setup::source(&settings.postgres, settings.workers + 2).await?;
    let shapes = setup::shapes(&source, &settings.tables).await?;
    let client = setup::client(sls)?;
    setup::check_logstores(&client, &sls.project, &settings.tables).await?;
    // Each worker, the tail reader, the settler and the heartbeat may write at the same time.
    let connections = settings.workers + 3;
    let ledger = Ledger::open(&settings.postgres.ledger, connections, settings.allow_fsync_off)
        .await
        .or_exit(Exit::Preflight)?;
    ledger.bind_project(&sls.project).await.or_exit(Exit::Preflight)?;
    ledger.recognise(&source.identity().await?).await?;
    let process = ledger.enter(settings.join).await.map_err(|error| {
        let ended = Ended::from(error);
        if ended.exit != Exit::Busy {
            return ended;
        }
        let error = anyhow::anyhow!(
            "{:#}\nnothing was done\nhint: wait for it, or share its work with --join",
            ended.error
        );
        Ended { error, ..ended }
    })?;

    let clocks = Clocks {
        own: setup::own_now(),
        postgres: source.server.now.unix_s().unwrap_or(0),
        sls: Some(client.now()),
    };
    if let Some(skew) = clocks.skew() {
        tracing::warn!("{skew}; nothing is lost by it\nhint: let NTP set the clocks");
    }
    let now = Timestamp::from_unix_s(clocks.earliest());
    let world = World { proven: false, windows: settings.windows };
    let kept = retention::kept(settings, &client, &source, &shapes, now).await?;
    let health = Arc::new(HealthGate::new(settings.replica_lag_max_s));
    health.look(&source).await?;
    let watched = source.clone();
    let run = Run {
        settings,
        screen,
        health: Arc::clone(&health),
        source,
        ledger: ledger.clone(),
        client,
        world,
        memory: MemoryBudget::new(settings.memory_bytes),
        process: process.clone(),
        settled_before: now.plus_s(-settings.settle_s),
        abandoned_before: now.plus_s(-settings.abandoned_after_s),
        kept,
        rows: RowBudget::new(settings.rows_max),
        pace: Arc::new(Pace::new(settings.rates, settings.limits.batch_bytes, settings.workers)),
        stop,
    };
    let epoch = Epoch {
        client: run.client.clone(),
        ledger: ledger.clone(),
        process: process.clone(),
        tables: settings.tables.clone(),
    };
    let result = tokio::select! {
        result = run.first_of_all(&shapes, &epoch) => result,
        lost = beat(&ledger, &process) => Err(lost.into()),
        other = epoch.watch(settings.windows) => Err(other.into()),
        never = health.watch(&watched) => match never {},
    };
    let left = tokio::time::timeout(LEASE, ledger.leave(&process)).await;
    let exit = result.map_err(in_the_middle)?;
    left.context("leave the ledger").and_then(|left| left)?;
    Ok(exit)
}

/// Says where a run stands that has failed, or from which something has gone away.
fn in_the_middle(ended: Ended) -> Ended {
    // Whose text ends with what to do needs no more of it.
    if ended.exit != Exit::Failed || ended.error.is::<Unkept>() {
        return ended;
    }
    let is_sls_gone = |cause: &(dyn std::error::Error + 'static)| {
        let failure = cause.downcast_ref::<Failure>();
        failure.is_some_and(|failure| matches!(failure.next, Next::Later | Next::Unknown))
    };
    let (exit, hint) = if pg::is_gone(&ended.error) {
        let hint = "when Postgres is back, run the same command again: it goes on where this one \
                    has stopped";
        (Exit::Unfinished, hint)
    } else if ended.error.chain().any(is_sls_gone) {
        let hint = "when SLS answers again, run the same command again: it goes on where this one \
                    has stopped";
        (Exit::Unfinished, hint)
    } else {
        (Exit::Failed, "run the same command again: it goes on where this one has stopped")
    };
    let told = told(&ended.error);
    let error = anyhow::anyhow!(
        "{told}\nnothing is lost: everything that was sent is in the ledger\nhint: {hint}"
    );
    Ended { exit, error }
}

/// Keeps the lease; ends when it is lost. Without the ledger nothing may be sent, so the run ends
/// with it, wherever it is: its intents are in the ledger.
pub(in crate::commands) async fn beat(ledger: &Ledger, process: &Process) -> anyhow::Error {
    let mut last = Instant::now();
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        let beat = tokio::time::timeout(HEARTBEAT, ledger.heartbeat(process)).await;
        match beat.context("it does not answer").and_then(|beat| beat) {
            Ok(()) => last = Instant::now(),
            Err(error) if last.elapsed() + 2 * HEARTBEAT > LEASE => {
                return error.context(
                    "the ledger does not hear us any more; nothing more was sent\n\
                     hint: run the same command again when the ledger's Postgres is back",
                );
            }
            Err(error) => tracing::warn!("the ledger does not hear us: {error:#}"),
        }
    }
}

impl Run<'_> {
    /// Makes sure that nobody else sends to the same place, then moves the tables.
    async fn first_of_all(mut self, shapes: &[Shape], epoch: &Epoch) -> Result<Exit, Ended> {
        epoch.claim().await.or_exit(Exit::Preflight)?;
        if self.settings.verify == Verify::Tags {
            for shape in shapes {
                let mut follower = Follower::begin(&self.client, &self.ledger, shape.table).await?;
                follower.catch_up(&self.stop).await?;
            }
        }
        epoch.check_batches().await?;
        self.world.proven = self.is_seqid_proven().await?;
        self.all_tables(shapes).await
    }

    /// Whether SLS refuses a number that it has stored; finds out where nobody knows.
    async fn is_seqid_proven(&mut self) -> anyhow::Result<bool> {
        let sls = self.settings.sls.as_ref().context("a run has an SLS")?;
        let place = sls.place();
        let mut known = self.ledger.seqid(&place).await?;
        if known.is_none() && self.settings.probe {
            tracing::info!("trying out on logstore {} whether SLS keeps numbers", probe::LOGSTORE);
            match probe(&self.client, &mut self.stop).await {
                Probed::Shown(seqid) => {
                    self.ledger.probed(&place, seqid).await?;
                    known = Some(seqid);
                }
                Probed::Unclear(why) => {
                    tracing::warn!("nobody knows whether SLS keeps numbers: {why}");
                }
            }
        }
        if known != Some(Seqid::Proven) {
            tracing::warn!(
                "SLS is not proven to refuse a number that it has stored; a batch whose answer is \
                 lost waits until it cannot arrive any more, about {} min",
                (self.settings.windows.storable_s() + self.settings.windows.visible_s) / 60
            );
        }
        Ok(known == Some(Seqid::Proven))
    }

    async fn all_tables(mut self, shapes: &[Shape]) -> Result<Exit, Ended> {
        if let Some(path) = &self.settings.retry {
            let rows = rejects::feed(&self.ledger, path).await.or_exit(Exit::Usage)?;
            tracing::info!("{} held rows of {} are tried again", count(rows), path.display());
        }
        let (mut accounts, mut total) =
            (Vec::new(), Outcome { is_complete: true, ..Outcome::default() });
        for shape in shapes {
            let outcome = self.table(shape).await?;
            accounts.push((shape.table, self.ledger.account(shape.table).await?));
            total.sent += outcome.sent;
            total.is_complete &= outcome.is_complete;
            total.differences += outcome.differences;
        }
        status::print(&accounts, self.settings.format)?;
        if let Some(path) = &self.settings.rejects {
            let rows = rejects::write(&self.ledger, &self.settings.tables, path).await?;
            tracing::info!("{} rejected rows are listed in {}", count(rows), path.display());
        }
        let refused = HoldReason::Refused.name();
        let rows_refused =
            accounts.iter().filter_map(|(_, account)| account.held.get(refused)).sum();
        Ok(self.conclude(total, rows_refused))
    }

    /// Says how the run ended.
    fn conclude(&self, total: Outcome, rows_refused: u64) -> Exit {
        if total.differences > 0 {
            tracing::error!(
                "{} batches are not in SLS as they were sent; nothing was deleted anywhere\n\
                 hint: run again: what only was slow to appear is found then",
                total.differences
            );
            return Exit::Difference;
        }
        if !total.is_complete {
            let why = if self.rows.is_spent() { "--max-rows is reached" } else { "stopped" };
            tracing::warn!(
                "{why}, with work left; everything that was sent is in the ledger\n\
                 hint: run the same command again to go on"
            );
            return Exit::Unfinished;
        }
        match total.sent {
            0 => tracing::info!("nothing new to do"),
            rows => tracing::info!("done: {} rows sent", count(rows)),
        }
        if rows_refused > 0 {
            tracing::warn!(
                "{} rows are not in SLS because it refuses them\n\
                 hint: `dify-sls-backfill status` lists them",
                count(rows_refused)
            );
            return Exit::Refused;
        }
        Exit::Done
    }

    async fn table(&mut self, shape: &Shape) -> Result<Outcome, Ended> {
        let table = shape.table;
        let pass = self.pass(shape).await?;
        let mut follower = Follower::begin(&self.client, &self.ledger, table).await?;
        let (tail_stopper, tail_stop) = channel();
        let mut tail = match self.settings.verify {
            Verify::Tags => Some(tokio::spawn(follower.clone().follow(tail_stop.clone()))),
            Verify::None => None,
        };
        // Before the first ANALYZE the planner guesses without knowing anything.
        let rows_estimated = match shape.rows_estimated {
            0 => 0,
            _ => self.source.rows_estimated(&scope(&pass.plan)).await?,
        };
        let rows_left = rows_estimated.saturating_sub(self.ledger.rows_seen(&pass).await?);
        let progress = Progress::new(table, rows_left);
        let settler = self.settler(shape, &pass, &follower, &progress)?;
        let settler = tokio::spawn(settler.settle(tail_stop));
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
        let settler = settler.await.context("settle what is open")?;
        worked?;
        if let Some(tail) = tail {
            tail.await.context("follow the upload")??;
        }
        let settled = settler?.finish().await?;
        self.tell(table, &progress);
        tell_settled(table, &settled);

        let is_closed = self.ledger.close_pass(pass.id).await?;
        let sent = progress.sent.load(Ordering::Relaxed) + settled.sent_rows;
        let mut outcome = Outcome { sent, differences: settled.differ, ..Outcome::default() };
        if self.settings.verify == Verify::Tags {
            let judgement = follower.finish(&self.stop).await?;
            // Who was asked to stop has not read to the end, and cannot tell what is missing.
            if !self.stop.is_asked() {
                outcome.differences += tell_judgement(table, &judgement);
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

    fn settler(
        &self,
        shape: &Shape,
        pass: &Pass,
        follower: &Follower,
        progress: &Arc<Progress>,
    ) -> anyhow::Result<Settler> {
        let conversion = serde_json::from_value(pass.conversion.clone())
            .context("read the pass's conversion from the ledger")?;
        let parts = SettlerParts {
            source: self.source.clone(),
            ledger: self.ledger.clone(),
            client: self.client.clone(),
            process: self.process.clone(),
            table: shape.table,
            follower: follower.clone(),
            world: self.world,
            memory: self.memory.clone(),
            progress: Arc::clone(progress),
            pace: Arc::clone(&self.pace),
            conversion_id: pass.conversion_id,
            conversion,
            settled_before: self.settled_before,
            nth: self.settings.workers as usize,
        };
        Settler::new(parts, self.stop.clone())
    }

    fn tell(&self, table: Table, progress: &Progress) {
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let seconds = progress.elapsed().as_secs_f64().max(0.001);
        let raw = get(&progress.raw_bytes);
        let ledger = Duration::from_nanos(get(&progress.ledger_ns)).as_secs_f64();
        let ledger_share = 100.0 * ledger / seconds / f64::from(self.settings.workers);
        tracing::info!(
            "{table}: looked at {} rows, sent {} ({}, {} compressed) in {seconds:.1} s, {}/s; \
             {ledger_share:.1} % of the time was spent on the ledger",
            count(get(&progress.seen)),
            count(get(&progress.sent)),
            bytes(raw),
            bytes(get(&progress.body_bytes)),
            bytes((raw as f64 / seconds) as u64),
        );
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
        let conversion: Conversion = serde_json::from_value(job.conversion)
            .context("read a pass's conversion from the ledger")?;
        let settings = self.settings;
        let shared = Arc::new(Shared {
            feed: FeedSettings {
                source: self.source.clone(),
                ledger: Some(self.ledger.clone()),
                shape: shape.clone(),
                limits: settings.limits.clone(),
                settled_before: self.settled_before,
                abandoned_before: self.abandoned_before,
                kept_since: self
                    .kept
                    .get(&shape.table)
                    .copied()
                    .filter(|_| conversion.log_time == LogTime::FinishedAt),
            },
            ledger: self.ledger.clone(),
            client: self.client.clone(),
            world: self.world,
            process: self.process.clone(),
            pass_id: job.pass_id,
            conversion_id: job.conversion_id,
            conversion,
            scope: scope(plan),
            range_rows: settings.range_rows,
            recount: if settings.verify == Verify::None { Recount::No } else { Recount::Yes },
            memory: self.memory.clone(),
            rows: self.rows.clone(),
            pace: Arc::clone(&self.pace),
            health: Arc::clone(&self.health),
            canaries: self.canaries(shape.table).await?,
            progress: Arc::clone(progress),
            only_holds: job.only_holds,
        });
        let mut workers = tokio::task::JoinSet::new();
        for nth in 0..settings.workers as usize {
            workers.spawn(Worker::new(Arc::clone(&shared), self.stop.clone(), nth)?.work());
        }
        // The first error ends all: dropping the set aborts the others, and their intents are in
        // the ledger.
        while let Some(ended) = workers.join_next().await {
            ended.context("a worker ended badly")??;
        }
        Ok(())
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
fn tell_settled(table: Table, settled: &Settled) {
    let Settled { found, sent, halved, abandoned, refused_rows, open, next_at, .. } = settled;
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
fn tell_judgement(table: Table, judgement: &Judgement) -> u64 {
    let differences = judgement.differences.len() as u64;
    tracing::info!(
        "{table}: pulled back and compared: {} batches with {} rows are equal, {} differ",
        count(judgement.batches_equal),
        count(judgement.rows_equal),
        count(differences),
    );
    for Difference { batch_id, rows, found } in judgement.differences.iter().take(20) {
        tracing::error!("batch {batch_id}: SLS should hold {rows} rows of it, it holds {found}");
    }
    differences
}
