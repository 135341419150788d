//! `run`: sends what is to be sent, continues where the last run stopped, and verifies.

mod live_writer;
mod passes;
mod unkept;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;

use crate::commands::connections::Demand;
use crate::commands::difference::Difference;
use crate::commands::dry_run::dry_run;
use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::output::count;
use crate::commands::retention::{self, Kept};
use crate::commands::run_settings::{RunSettings, Verify};
use crate::commands::setup;
use crate::commands::{rejects, status};
use crate::error_text::error_text;
use crate::ledger::Ledger;
use crate::ledger::account::{Account, RunAccount};
use crate::ledger::process::{HEARTBEAT, LEASE, Process, TakenForDead};
use crate::ledger::stop::Seqid;
use crate::pg;
use crate::pipeline::guard::budget::{MemoryBudget, RowBudget};
use crate::pipeline::guard::epoch::Epoch;
use crate::pipeline::guard::health_gate::HealthGate;
use crate::pipeline::guard::live_writer::LivePeriod;
use crate::pipeline::guard::pace::Pace;
use crate::pipeline::guard::probe::{self, Probed, probe};
use crate::pipeline::guard::signing_lease::SigningLease;
use crate::pipeline::progress::screen::Screen;
use crate::pipeline::read::window::Clocks;
use crate::pipeline::recover::rules::Guarantees;
use crate::pipeline::send::canary::Unkept;
use crate::pipeline::shutdown::Shutdown;
use crate::pipeline::verify::tail_reader::TailReader;
use crate::record::hold::HoldReason;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::sls::answer::{Failure, NextAction};
use crate::sls::client::Client;
use crate::source::Source;
use crate::source::catalog::Shape;

/// What a run works with from its beginning to its end.
struct Run<'a> {
    settings: &'a RunSettings,
    screen: &'a Screen,
    source: Source,
    ledger: Ledger,
    client: Client,
    signing_lease: Arc<SigningLease>,
    guarantees: Guarantees,
    memory: MemoryBudget,
    process: Process,
    /// When it began, by the earliest clock.
    now: Timestamp,
    /// Which rows' logs are kept.
    kept: BTreeMap<Table, Kept>,
    /// When this run has read for the first time what SLS had acknowledged before (Unix seconds,
    /// SLS's clock).
    behind_at: BTreeMap<Table, i64>,
    /// When other writers may have stored rows; nothing where there is none.
    live: BTreeMap<Table, LivePeriod>,
    rows: RowBudget,
    pace: Arc<Pace>,
    health: Arc<HealthGate>,
    shutdown: Shutdown,
}

/// What came of one table.
#[derive(Debug, Clone, Default)]
struct Outcome {
    /// Rows sent by this run.
    sent: u64,
    /// Whether the pass is done, and no batch open.
    is_complete: bool,
    /// Batches that SLS does not hold as the ledger says, by what is the matter.
    differences: BTreeMap<Difference, u64>,
}

impl Outcome {
    fn add_differences(&mut self, differences: BTreeMap<Difference, u64>) {
        for (difference, batches) in differences {
            *self.differences.entry(difference).or_default() += batches;
        }
    }
}

/// Runs; a first SIGINT or SIGTERM finishes what is in flight.
pub async fn run(
    settings: &RunSettings,
    screen: &Screen,
    shutdown: Shutdown,
) -> Result<Exit, Ended> {
    let Some(sls) = settings.sls.as_ref().filter(|_| !settings.dry_run) else {
        return dry_run(settings, screen, &shutdown).await;
    };
    let pools = Demand::run(settings.workers).pools(&settings.postgres, settings.connections);
    let source = setup::source(&settings.postgres, pools.source).await?;
    let shapes = setup::shapes(&source, &settings.tables).await?;
    let client = setup::client(sls)?;
    let logstores = setup::check_logstores(&client, &sls.project, &settings.tables).await?;
    let ledger = Ledger::open(&settings.postgres.ledger, pools.ledger, settings.allow_fsync_off)
        .await
        .or_exit(Exit::Preflight)?;
    ledger.bind(&sls.project, &sls.endpoint.service).await.or_exit(Exit::Preflight)?;
    ledger.recognise(&source.identity().await?, settings.new_source).await?;
    ledger.meet(&logstores).await?.stops().map_err(anyhow::Error::from)?;
    if let Some((found, hint)) = ledger.standbys().await?.warning() {
        tracing::warn!("the ledger's Postgres {found}\nhint: {hint}");
    }
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
    let guarantees = Guarantees { proven: false, timings: settings.timings };
    let kept = retention::kept(settings, &logstores, &source, &shapes, now).await?;
    let health = Arc::new(HealthGate::new(settings.replica_lag_max_s));
    health.look(&source).await?;
    let watched = source.clone();
    let signing_lease = Arc::new(SigningLease::new(settings.timings));
    let run = Run {
        settings,
        signing_lease: Arc::clone(&signing_lease),
        screen,
        health: Arc::clone(&health),
        source,
        ledger: ledger.clone(),
        client,
        guarantees,
        memory: MemoryBudget::new(settings.memory_bytes),
        process: process.clone(),
        now,
        kept,
        behind_at: BTreeMap::new(),
        live: BTreeMap::new(),
        rows: RowBudget::new(settings.rows_max),
        pace: Arc::new(Pace::new(
            settings.rates,
            settings.limits.batch_bytes,
            settings.workers.at_most,
        )),
        shutdown,
    };
    let epoch = Epoch {
        signing_lease,
        client: run.client.clone(),
        ledger: ledger.clone(),
        process: process.clone(),
        tables: settings.tables.clone(),
    };
    let result = tokio::select! {
        result = run.first_of_all(&shapes, &epoch) => result,
        lost = beat(&ledger, &process) => Err(lost.into()),
        other = epoch.watch(settings.timings) => Err(other.into()),
        never = health.watch(&watched) => match never {},
    };
    let left = tokio::time::timeout(LEASE, ledger.leave(&process)).await;
    let exit = result.map_err(in_the_middle)?;
    left.context("leave the ledger").and_then(|left| left)?;
    Ok(exit)
}

/// Says where a run stands that has failed, or that has lost Postgres or SLS.
fn in_the_middle(ended: Ended) -> Ended {
    // Whose text ends with what to do needs no more of it.
    if ended.exit != Exit::Failed || ended.error.is::<Unkept>() {
        return ended;
    }
    let is_sls_gone = |cause: &(dyn std::error::Error + 'static)| {
        let failure = cause.downcast_ref::<Failure>();
        failure.is_some_and(|failure| {
            matches!(failure.next, NextAction::Later | NextAction::NotSent | NextAction::Unknown)
        })
    };
    let (exit, hint) = if pg::is_gone(&ended.error) {
        let hint = "when Postgres is back, run the same command again: it continues where this \
                    one stopped";
        (Exit::Unfinished, hint)
    } else if ended.error.chain().any(is_sls_gone) {
        let hint = "when SLS answers again, run the same command again: it continues where this \
                    one stopped";
        (Exit::Unfinished, hint)
    } else {
        (Exit::Failed, "run the same command again: it continues where this one stopped")
    };
    let text = error_text(&ended.error);
    let error = anyhow::anyhow!(
        "{text}\nnothing is lost: everything that was sent is in the ledger\nhint: {hint}"
    );
    Ended { exit, error }
}

/// Makes this the one process at work, for a command during which nobody sends.
pub(in crate::commands) async fn enter_alone(ledger: &Ledger) -> Result<Process, Ended> {
    ledger.enter(false).await.map_err(|error| {
        let ended = Ended::from(error);
        let error =
            anyhow::anyhow!("{:#}\nnothing was done\nhint: wait for it, or stop it", ended.error);
        Ended { error, ..ended }
    })
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
            Err(error) if error.is::<TakenForDead>() => return error,
            Err(error) if last.elapsed() + 2 * HEARTBEAT > LEASE => {
                return error.context(
                    "the lease in the ledger could not be renewed; nothing more was sent\n\
                     hint: run the same command again when the ledger's Postgres is back",
                );
            }
            Err(error) => tracing::warn!("the lease in the ledger is not renewed yet: {error:#}"),
        }
    }
}

impl Run<'_> {
    /// Makes sure that nobody else sends to the same place, then moves the tables.
    async fn first_of_all(mut self, shapes: &[Shape], epoch: &Epoch) -> Result<Exit, Ended> {
        epoch.claim().await.or_exit(Exit::Preflight)?;
        if self.settings.verify == Verify::Tags {
            for shape in shapes {
                self.read_first(shape.table).await?;
            }
        }
        self.check_live_writers().await?;
        self.guarantees.proven = self.is_seqid_proven().await?;
        self.all_tables(shapes).await
    }

    /// Reads what has become visible since the last run: what it tells comes before any decision.
    async fn read_first(&mut self, table: Table) -> Result<(), Ended> {
        let read_from = self.client.now();
        let was_behind = !self.ledger.unseen(table, &[]).await?.is_empty();
        let mut tail_reader = TailReader::begin(&self.client, &self.ledger, table).await?;
        tail_reader.catch_up(&self.shutdown).await?;
        if was_behind {
            self.behind_at.insert(table, self.client.now());
        }
        // Who was asked to stop has not read to the end.
        if self.shutdown.is_asked() { Ok(()) } else { self.check_unkept(table, read_from).await }
    }

    /// Whether SLS refuses a sequence number that it has stored; tests it where that is not known.
    async fn is_seqid_proven(&mut self) -> anyhow::Result<bool> {
        let sls = self.settings.sls.as_ref().context("a run has an SLS")?;
        let place = sls.place();
        let mut known = self.ledger.seqid(&place).await?;
        if known.is_none() && self.settings.probe {
            tracing::info!(
                "testing on logstore {} whether SLS refuses repeated sequence numbers",
                probe::LOGSTORE
            );
            match probe(&self.client, &mut self.shutdown).await {
                Probed::Shown(seqid) => {
                    self.ledger.probed(&place, seqid).await?;
                    known = Some(seqid);
                }
                Probed::Unclear(why) => {
                    tracing::warn!(
                        "it is not known whether SLS refuses repeated sequence numbers: {why}"
                    );
                }
            }
        }
        if known != Some(Seqid::Proven) {
            tracing::warn!(
                "SLS is not proven to refuse a sequence number that it has stored; a batch in doubt \
                 waits until it cannot arrive any more, about {} min",
                (self.settings.timings.storable_s() + self.settings.timings.visible_s) / 60
            );
        }
        Ok(known == Some(Seqid::Proven))
    }

    async fn all_tables(mut self, shapes: &[Shape]) -> Result<Exit, Ended> {
        if let Some(path) = &self.settings.retry {
            let rows = rejects::requeue(&self.ledger, path).await.or_exit(Exit::Usage)?;
            tracing::info!("{} held rows of {} are tried again", count(rows), path.display());
        }
        let (mut accounts, mut of_this_run) = (Vec::new(), Vec::new());
        let mut total = Outcome { is_complete: true, ..Outcome::default() };
        for shape in shapes {
            let before = self.ledger.account(shape.table).await?;
            let outcome = self.table(shape).await?;
            let account = self.ledger.account(shape.table).await?;
            of_this_run.push((shape.table, RunAccount::between(&before, &account)));
            accounts.push((shape.table, account));
            total.sent += outcome.sent;
            total.is_complete &= outcome.is_complete;
            total.add_differences(outcome.differences);
        }
        status::print_run(&of_this_run, self.settings.format)?;
        status::check(&accounts)?;
        if let Some(path) = &self.settings.rejects {
            let rows = rejects::write(&self.ledger, &self.settings.tables, path).await?;
            tracing::info!("{} rejected rows are listed in {}", count(rows), path.display());
        }
        Ok(self.conclude(&total, &accounts))
    }

    /// Says how the run ended.
    fn conclude(&self, total: &Outcome, accounts: &[(Table, Account)]) -> Exit {
        let sum = |of: fn(&Account) -> u64| accounts.iter().map(|(_, account)| of(account)).sum();
        let (rows_doubled, rows_lost): (u64, u64) =
            (sum(|account| account.doubled), sum(|account| account.lost));
        if rows_doubled > 0 {
            tracing::error!(
                "{} rows are in two batches, so SLS holds them twice; nothing was deleted\n\
                 hint: `dify-sls-backfill status` lists them",
                count(rows_doubled)
            );
        }
        if rows_lost > 0 {
            tracing::error!(
                "{} rows that were in SLS are not there any more, and are not sent again\n\
                 hint: if they are to be sent again, say --resend-lost",
                count(rows_lost)
            );
        }
        for (difference, batches) in &total.differences {
            let batches = count(*batches);
            tracing::error!("{batches} batches {}; {}", difference.what(), difference.way_on());
        }
        if rows_doubled + rows_lost > 0 || !total.differences.is_empty() {
            return Exit::Difference;
        }
        if !total.is_complete {
            let why = if self.rows.is_spent() { "--max-rows is reached" } else { "stopped" };
            tracing::warn!(
                "{why}, with work left; everything that was sent is in the ledger\n\
                 hint: run the same command again to continue"
            );
            return Exit::Unfinished;
        }
        let unread = accounts.iter().filter(|(_, account)| account.unread > 0);
        let unread: Vec<_> = unread
            .map(|(table, account)| format!("{} of {table}", count(account.unread)))
            .collect();
        if !unread.is_empty() {
            tracing::error!(
                "Postgres counts rows that no reading has seen: {}; the ranges that they are in are \
                 remembered, and nothing was deleted anywhere\n\
                 hint: run again: it reads these ranges once more",
                unread.join(", ")
            );
            return Exit::Difference;
        }
        match total.sent {
            0 => tracing::info!("nothing new to do"),
            rows => tracing::info!("done: {} rows sent", count(rows)),
        }
        let refused = HoldReason::Refused.name();
        let rows_refused: u64 =
            accounts.iter().filter_map(|(_, account)| account.held.get(refused)).sum();
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
}
