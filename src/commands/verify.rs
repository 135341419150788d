//! `verify`: compares what SLS holds with the ledger and with Postgres, by counting, by content, or by
//! what Dify shows.

mod content;
mod counts;
mod parity;
mod sample;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::commands::connections::Demand;
use crate::commands::difference::Difference;
use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::output::{self, Format, count};
use crate::commands::page::{self, PageWish};
use crate::commands::setup::{self, PostgresSettings, SlsSettings};
use crate::ledger::Ledger;
use crate::ledger::generation::LogstoreFacts;
use crate::ledger::verification::BatchScope;
use crate::pipeline::progress::Progress;
use crate::pipeline::progress::screen::Screen;
use crate::pipeline::recover::rules::Timings;
use crate::pipeline::retry::with_retries;
use crate::pipeline::shutdown::Shutdown;
use crate::record::table::Table;
use crate::sls::client::Client;
use crate::source::Source;
use crate::source::catalog::Shape;

/// The version of the JSON that `verify` prints; docs/verify.md describes it.
pub(in crate::commands::verify) const SCHEMA_VERSION: u32 = 1;

/// How closely to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Level {
    /// Rows and logs are counted, day by day.
    Counts,
    /// Every log is pulled back and compared.
    Content,
    /// The same for some batches, chosen at random; in hundredths of a percent.
    Sample(u32),
    /// The questions of Dify's readers are asked of both sides.
    Parity(ParityWish),
}

/// How far parity is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParityWish {
    /// Only these apps; none: all.
    pub apps: Vec<Uuid>,
    pub apps_max: u32,
    /// So many runs of each app are looked at one by one.
    pub runs_per_app: u32,
    /// Whether graphs are written (`LOGSTORE_ENABLE_PUT_GRAPH_FIELD`).
    pub has_graph: bool,
}

/// What `verify` needs to know.
pub struct VerifySettings {
    pub postgres: PostgresSettings,
    pub sls: SlsSettings,
    pub tables: Vec<Table>,
    pub level: Level,
    pub scope: BatchScope,
    pub recheck: bool,
    pub timings: Timings,
    /// At most so many to both databases; `None`: by what the servers have left.
    pub connections: Option<u32>,
    pub progress_every: Duration,
    pub allow_fsync_off: bool,
    pub format: Format,
    /// A page beside it.
    pub page: Option<PageWish>,
}

/// What a verification works with.
pub(in crate::commands::verify) struct Verify<'a> {
    settings: &'a VerifySettings,
    screen: &'a Screen,
    source: Source,
    ledger: Ledger,
    client: Client,
    shutdown: Shutdown,
}

/// What came of one table.
#[derive(Debug, Clone, Default)]
pub(in crate::commands::verify) struct Outcome {
    /// The table's part of the JSON.
    json: Value,
    /// The same for a person.
    text: Vec<String>,
    /// How many batches, rows or days differ, by kind: numbers with what they count.
    differences: BTreeMap<Difference, String>,
    /// Why something is not known, in words; empty: all is known.
    unknown: Vec<String>,
}

impl Outcome {
    fn differs(&mut self, difference: Difference, number: u64, unit: &str) {
        if number > 0 {
            self.differences.insert(difference, format!("{} {unit}", count(number)));
        }
    }

    fn verdict(&self) -> &'static str {
        match (self.differences.is_empty(), self.unknown.is_empty()) {
            (false, _) => "differs",
            (true, false) => "not_known",
            (true, true) => "equal",
        }
    }
}

/// Verifies; a first SIGINT or SIGTERM stops, and a verification of content can be gone on with.
pub async fn run(
    settings: &VerifySettings,
    screen: &Screen,
    shutdown: Shutdown,
) -> Result<Exit, Ended> {
    let pools = Demand::VERIFY.pools(&settings.postgres, settings.connections);
    let source = setup::source(&settings.postgres, pools.source).await?;
    let shapes = setup::shapes(&source, &settings.tables).await?;
    let client = setup::client(&settings.sls)?;
    let logstores = check_logstores(settings, &client).await?;
    let ledger =
        Ledger::open_existing(&settings.postgres.ledger, pools.ledger, settings.allow_fsync_off)
            .await;
    let ledger = ledger.or_exit(Exit::Preflight)?;
    setup::bind(&ledger, &settings.sls, &logstores).await?;
    let mut verify = Verify { settings, screen, source, ledger, client, shutdown };
    let mut outcomes = Vec::new();
    for shape in &shapes {
        let outcome = match &settings.level {
            Level::Counts => verify.counts(shape).await?,
            Level::Content => verify.content(shape).await?,
            Level::Sample(share) => verify.sample(shape, *share).await?,
            Level::Parity(wish) => return verify.parity(wish, &shapes).await,
        };
        let Some(outcome) = outcome else { return Ok(stopped(&settings.level)) };
        outcomes.push((shape.table, outcome));
    }
    print(settings, &outcomes);
    page::write(settings.page.as_ref(), "Verification", || as_json(settings, &outcomes))?;
    Ok(conclude(&outcomes))
}

/// Whether what is looked at is there; gives what SLS says of it.
async fn check_logstores(
    settings: &VerifySettings,
    client: &Client,
) -> Result<Vec<LogstoreFacts>, Ended> {
    let (project, tables) = (&settings.sls.project, &settings.tables);
    if matches!(settings.level, Level::Counts | Level::Parity(_)) {
        return setup::check_logstores(client, project, tables).await;
    }
    let mut logstores = Vec::new();
    for table in tables {
        logstores.push(setup::known_logstore(client, project, *table).await?);
    }
    Ok(logstores)
}

impl Verify<'_> {
    /// How many days the logstore keeps logs; `None`: for ever, or SLS does not tell.
    pub(in crate::commands::verify) async fn ttl_days(
        &self,
        table: Table,
    ) -> anyhow::Result<Option<i64>> {
        let logstore = table.logstore();
        let body = with_retries(|| self.client.logstore(logstore))
            .await
            .with_context(|| format!("look up logstore {logstore}"))?;
        // 3650 days is for ever.
        Ok(body.and_then(|body| body["ttl"].as_i64()).filter(|days| *days < 3650))
    }

    /// Runs `work` with its progress shown.
    pub(in crate::commands::verify) async fn shown<T>(
        &self,
        progress: &Arc<Progress>,
        work: impl Future<Output = T>,
    ) -> T {
        let report = Arc::clone(progress).report(self.screen.clone(), self.settings.progress_every);
        let reporter = tokio::spawn(report);
        let done = work.await;
        reporter.abort();
        // The reporter's bar must be gone before anything else is written.
        let _ = reporter.await;
        done
    }

    /// About how many rows a table has; 0: nobody knows.
    pub(in crate::commands::verify) fn rows_estimated(shape: &Shape) -> u64 {
        u64::try_from(shape.rows_estimated).unwrap_or(0)
    }
}

pub(in crate::commands::verify) fn stopped(level: &Level) -> Exit {
    let kept = match level {
        Level::Content => {
            "what was read is in the ledger\nhint: run the same command again to go on"
        }
        Level::Counts | Level::Sample(_) | Level::Parity(_) => {
            "nothing was changed\nhint: run the same command again"
        }
    };
    tracing::warn!("stopped before the end; {kept}");
    Exit::Unfinished
}

fn print(settings: &VerifySettings, outcomes: &[(Table, Outcome)]) {
    match settings.format {
        Format::Json => output::line(&as_json(settings, outcomes).to_string()),
        Format::Text => {
            for line in outcomes.iter().flat_map(|(_, outcome)| &outcome.text) {
                output::line(line);
            }
        }
    }
}

fn as_json(settings: &VerifySettings, outcomes: &[(Table, Outcome)]) -> Value {
    let level = match settings.level {
        Level::Counts => "counts",
        Level::Content => "content",
        Level::Sample(_) => "sample",
        Level::Parity(_) => "parity",
    };
    let tables: serde_json::Map<_, _> = outcomes
        .iter()
        .map(|(table, outcome)| {
            let mut json = outcome.json.clone();
            json["verdict"] = outcome.verdict().into();
            (table.name().to_owned(), json)
        })
        .collect();
    json!({"schema_version": SCHEMA_VERSION, "level": level, "tables": tables})
}

/// Says what is wrong and what to do about it, each kind by itself.
fn conclude(outcomes: &[(Table, Outcome)]) -> Exit {
    let mut kinds: BTreeMap<Difference, Vec<String>> = BTreeMap::new();
    for (table, outcome) in outcomes {
        for (difference, number) in &outcome.differences {
            kinds.entry(*difference).or_default().push(format!("{table}: {number}"));
        }
        for why in &outcome.unknown {
            tracing::warn!("{table}: {why}");
        }
    }
    for (difference, numbers) in &kinds {
        tracing::error!("{} {}; {}", numbers.join(", "), difference.what(), difference.way_on());
    }
    if !kinds.is_empty() {
        return Exit::Difference;
    }
    if outcomes.iter().any(|(_, outcome)| !outcome.unknown.is_empty()) {
        return Exit::Unfinished;
    }
    tracing::info!("everything is equal");
    Exit::Done
}

/// A number for programs: a string, since JSON's numbers end at 2^53 for many of them.
pub(in crate::commands::verify) fn number(number: u64) -> Value {
    Value::String(number.to_string())
}
