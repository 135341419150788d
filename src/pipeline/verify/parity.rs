//! Verifies what Dify shows: asks SLS the questions of Dify's readers, in their own SQL, and
//! Postgres the same in its SQL, app by app.
//!
//! ```text
//! apps ─► of each: counts, charts ─► lists ─► some runs, their traces, some nodes ─► differences
//! ```
//!
//! What is asked about: rows that finished before the end of what finished passes cover, and that
//! SLS still keeps. Rows that are held are not expected. What was purged is not in Postgres any
//! more: the ledger knows its ids, and how many rows of each day, but neither app nor tokens. So a
//! number may then be larger by that much, and the runs of all apps are compared once more, by day.

pub mod asking;
pub mod charts;
pub mod finding;
pub mod judge;
pub mod rows;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use uuid::Uuid;

use crate::dify::readers::Owner;
use crate::ledger::Ledger;
use crate::pipeline::shutdown::Shutdown;
use crate::pipeline::verify::parity::asking::{Asking, Side};
use crate::pipeline::verify::parity::charts::{Context, DailyRuns};
use crate::pipeline::verify::parity::finding::{Asked, Findings, Question, Readers};
use crate::pipeline::verify::parity::rows::Rows;
use crate::record::day::Day;
use crate::sls::client::Client;
use crate::source::Source;
use crate::source::twins::TwinOwner;

/// Owners that are asked about at the same time; a project answers 15 queries at once, for all its
/// users.
const OWNERS_AT_ONCE: usize = 4;

/// What is compared, and with what.
pub struct ParityParts {
    pub source: Source,
    pub ledger: Ledger,
    pub client: Client,
    /// The two tables; `None`: it is not asked about.
    pub runs: Option<Side>,
    pub nodes: Option<Side>,
    /// Only these apps; none: all.
    pub apps: Vec<Uuid>,
    /// So many owners (an app, and how its runs were started) are asked about.
    pub owners_max: usize,
    /// So many runs of each owner are looked at one by one.
    pub runs_per_app: u32,
    pub has_graph: bool,
    pub context: Context,
    /// How often it is told how far it is.
    pub tell_every: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct ParityReport {
    pub owners: u64,
    /// Owners that were left out for `owners_max`.
    pub owners_left_out: u64,
    pub findings: Findings,
}

/// Asks both sides; `None` when asked to stop.
pub async fn compare(
    parts: &ParityParts,
    shutdown: &Shutdown,
) -> anyhow::Result<Option<ParityReport>> {
    let mut report = ParityReport::default();
    let incomplete = AtomicU32::new(0);
    let asking = Asking {
        source: &parts.source,
        ledger: &parts.ledger,
        client: &parts.client,
        incomplete: &incomplete,
    };
    let (mut owners, are_all_known) = owners(&asking, parts, &mut report.findings).await?;
    report.owners_left_out = owners.len().saturating_sub(parts.owners_max) as u64;
    owners.truncate(parts.owners_max);
    let total = owners.len();
    let asking = &asking;
    let mut compared = stream::iter(owners)
        .map(|owner| async move { compare_owner(asking, parts, &owner, shutdown).await })
        .buffer_unordered(OWNERS_AT_ONCE)
        .boxed();
    let (mut days, mut told) = (DailyRuns::default(), Instant::now());
    while let Some(compared) = compared.try_next().await? {
        let Some((findings, of_owner)) = compared else { return Ok(None) };
        report.owners += 1;
        report.findings.add(findings);
        for (sum, more) in [
            (&mut days.postgres, of_owner.postgres),
            (&mut days.sls, of_owner.sls),
            (&mut days.own_logs, of_owner.own_logs),
        ] {
            for (day, number) in more {
                *sum.entry(day).or_default() += number;
            }
        }
        if told.elapsed() >= parts.tell_every {
            told = Instant::now();
            tracing::info!("{} of {total} apps are compared", report.owners);
        }
    }
    drop(compared);
    let are_all = are_all_known && parts.apps.is_empty() && report.owners_left_out == 0;
    if are_all && parts.runs.is_some() && !parts.context.is_ingest {
        all_apps(&days, &parts.context.purged, &mut report.findings);
    }
    Ok(Some(report))
}

/// The days of which rows were purged: SLS has them on top of Postgres's, whatever their app.
fn all_apps(days: &DailyRuns, purged: &BTreeMap<Day, u64>, findings: &mut Findings) {
    let nobody = Owner { tenant: String::new(), app: "all".to_owned(), trigger: String::new() };
    let asked =
        Asked { owner: &nobody, readers: Readers::Shipped, question: Question::RunsOfAllApps };
    for (day, purged) in purged {
        let day = day.to_string();
        let number = |side: &BTreeMap<String, u64>| side.get(&day).copied().unwrap_or(0);
        // With logs of Dify's own nobody can tell.
        if number(&days.own_logs) > 0 {
            continue;
        }
        let (wanted, shown) = (number(&days.postgres) + purged, number(&days.sls));
        findings.answers += 1;
        if shown != wanted {
            let both = (Some(wanted.to_string()), Some(shown.to_string()));
            findings.push(asked.finding(&day, "runs", both.0, both.1));
        }
    }
}

/// The owners on both sides, in order, and whether SLS has told all of its own.
async fn owners(
    asking: &Asking<'_>,
    parts: &ParityParts,
    findings: &mut Findings,
) -> anyhow::Result<(Vec<TwinOwner>, bool)> {
    let mut owners = parts.source.owners().await?;
    let mut are_all_known = true;
    if let Some(side) = &parts.runs {
        match asking.owners(findings, side).await? {
            Some(in_sls) => owners.extend(in_sls),
            None => are_all_known = false,
        }
    }
    owners.retain(|owner| parts.apps.is_empty() || parts.apps.contains(&owner.app));
    owners.sort();
    owners.dedup();
    Ok((owners, are_all_known))
}

async fn compare_owner(
    asking: &Asking<'_>,
    parts: &ParityParts,
    twin: &TwinOwner,
    shutdown: &Shutdown,
) -> anyhow::Result<Option<(Findings, DailyRuns)>> {
    let owner = Owner {
        tenant: twin.tenant.to_string(),
        app: twin.app.to_string(),
        trigger: twin.trigger.clone(),
    };
    let rows = Rows { asking, owner: &owner, twin, has_graph: parts.has_graph };
    let (mut findings, mut days) = (Findings::default(), DailyRuns::default());
    if shutdown.is_asked() {
        return Ok(None);
    }
    let mut run_ids = Vec::new();
    if let Some(side) = parts.runs.as_ref().or(parts.nodes.as_ref()) {
        run_ids = parts.source.twin_sample(&side.shown, twin, parts.runs_per_app).await?;
    }
    if let Some(side) = &parts.runs {
        days = charts::compare(asking, side, &owner, twin, &parts.context, &mut findings).await?;
        rows.lists(side, &mut findings).await?;
        if shutdown.is_asked() {
            return Ok(None);
        }
        rows.runs(side, &run_ids, &mut findings).await?;
    }
    if let Some(side) = parts.nodes.as_ref().filter(|_| !shutdown.is_asked()) {
        rows.traces(side, &run_ids, &mut findings).await?;
    }
    Ok((!shutdown.is_asked()).then_some((findings, days)))
}
