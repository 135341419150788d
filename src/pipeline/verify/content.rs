//! Verifies the content: every log is pulled back and compared with the ledger, every row that is
//! still there is read again from Postgres, and every row that should be known is looked for.
//!
//! ```text
//! note the time ─► list the shards, take their ends ─┬─► pull them to these ends, sum up by tag ─┐
//!                                                    ├─► read the batches' rows from Postgres    ├─► judge
//!                                                    └─► look for rows that nobody names         ┘  ─► explain
//! ```
//!
//! The order makes it right while a run is at work. A batch that the ledger knew to be stored when
//! the time was noted lies before the ends that were taken later. A tag is looked up in the ledger
//! after it was seen, and an intent is in the ledger before its request leaves; so a tag that the
//! ledger lacks is foreign.

pub mod compare;
pub mod explain;
pub mod judging;
pub mod refetch;
pub mod sample;
pub mod shard_reader;
pub mod unaccounted;
pub mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Context as _;
use uuid::Uuid;

use crate::dify::conversion::Conversion;
use crate::ledger::Ledger;
use crate::ledger::verification::{BatchScope, ShardSpan, Verification};
use crate::ledger::verified_batches::VerifiedDay;
use crate::pipeline::progress::Progress;
use crate::pipeline::recover::rules::Timings;
use crate::pipeline::retry::with_retries;
use crate::pipeline::shutdown::Shutdown;
use crate::pipeline::verify::content::compare::{
    CompareTally, Comparer, ComparerParts, NOT_COMPARED, SOURCE_CHANGED, SOURCE_DIFFERS,
    SOURCE_GONE,
};
use crate::pipeline::verify::content::explain::explain;
use crate::pipeline::verify::content::judging::{Judge, VerdictTally};
use crate::pipeline::verify::content::sample::{SampleReport, sample, unwritten};
use crate::pipeline::verify::content::shard_reader::{ReadTally, ReaderParts};
use crate::pipeline::verify::content::unaccounted::{AccountParts, UNACCOUNTED};
use crate::pipeline::verify::content::verdict::{Look, Verdict};
use crate::record::day::Day;
use crate::record::table::Table;
use crate::sls::client::Client;
use crate::source::Source;
use crate::source::catalog::Shape;

/// A batch may have been stored so long before the ledger says that it was intended: clocks differ.
const CLOCKS_S: i64 = 3600;

/// Findings read from the ledger at once.
const PAGE_FINDINGS: u32 = 1000;

/// The kinds of findings about what Postgres has of a batch.
const IN_SOURCE: [&str; 4] = [SOURCE_CHANGED, SOURCE_DIFFERS, SOURCE_GONE, NOT_COMPARED];

/// What is verified, and with what.
#[derive(Clone)]
pub struct ContentParts {
    pub table: Table,
    pub source: Source,
    pub ledger: Ledger,
    pub client: Client,
    /// The conversion of the source as it is now.
    pub current: Conversion,
    pub shape: Shape,
    pub scope: BatchScope,
    /// Look only at what differed the last time, and at what has come since.
    pub recheck: bool,
    pub timings: Timings,
    /// How many days the logstore keeps logs; `None`: for ever, or not known.
    pub ttl_days: Option<i64>,
}

/// What a verification gave.
#[derive(Debug, Clone, Default)]
pub struct ContentReport {
    pub verdicts: BTreeMap<Verdict, VerdictTally>,
    pub read: ReadTally,
    pub compared: CompareTally,
    /// The days of the batches in scope.
    pub days: BTreeMap<Day, VerifiedDay>,
    /// By kind of finding: findings, rows, logs found.
    pub findings: BTreeMap<String, (u64, u64, u64)>,
    /// Rows of Postgres that must be known, and were looked for.
    pub rows_accounted: u64,
    /// The verification's number in the ledger.
    pub id: i64,
    /// When the shards' ends were taken; Unix seconds, SLS's clock.
    pub ended_at: i64,
    pub is_recheck: bool,
}

/// Begins a verification, goes on with one that was stopped, or reopens the last one.
pub async fn open(parts: &ContentParts) -> anyhow::Result<Verification> {
    let ContentParts { table, ledger, client, .. } = parts;
    let last = ledger.last_verification(*table).await?;
    if parts.recheck {
        let last = last.filter(|last| last.is_done).with_context(|| {
            format!(
                "no verification of {table} is done, so there is nothing to look at again\n\
                 hint: `dify-sls-backfill verify --level content`"
            )
        })?;
        let renewed = Verification {
            noted_at_us: ledger.now_us().await?,
            ended_at: client.now(),
            is_done: false,
            ..last
        };
        let spans = spans(client, *table, "begin").await?;
        ledger.reopen_verification(&renewed, &spans).await?;
        return Ok(renewed);
    }
    if let Some(last) = last.filter(|last| !last.is_done && last.scope == parts.scope) {
        tracing::info!("{table}: going on with the verification that was stopped");
        return Ok(last);
    }
    let mut new = Verification {
        id: 0,
        table: *table,
        scope: parts.scope.clone(),
        is_done: false,
        noted_at_us: ledger.now_us().await?,
        ended_at: client.now(),
        compared_after: Uuid::nil(),
        tally: serde_json::to_value(CompareTally::default())?,
    };
    let (_, first) = ledger.scope_size(&new).await?;
    let from = match first.filter(|_| parts.scope != BatchScope::default()) {
        Some(intended_at) => (intended_at - CLOCKS_S).to_string(),
        None => "begin".to_owned(),
    };
    new.id = ledger.begin_verification(&new, &spans(client, *table, &from).await?).await?;
    Ok(new)
}

/// All shards, read-only ones too, from `from` (a receive time, or `begin`) to their ends.
async fn spans(client: &Client, table: Table, from: &str) -> anyhow::Result<Vec<ShardSpan>> {
    let logstore = table.logstore();
    let shards = with_retries(|| client.shards(logstore))
        .await
        .with_context(|| format!("list the shards of {logstore}"))?;
    let mut spans = Vec::new();
    for shard in shards {
        let cursor = async |from: &str| {
            with_retries(|| client.cursor(logstore, shard.id, from))
                .await
                .with_context(|| format!("find a cursor of shard {}", shard.id))
        };
        let end_cursor = cursor("end").await?;
        spans.push(ShardSpan { shard: shard.id, cursor: cursor(from).await?, end_cursor });
    }
    Ok(spans)
}

/// Looks at some of the batches; writes nothing down. `None` when asked to stop.
pub async fn take_sample(
    parts: &ContentParts,
    share: u32,
    progress: &Arc<Progress>,
    shutdown: &Shutdown,
) -> anyhow::Result<Option<SampleReport>> {
    let now_us = parts.ledger.now_us().await?;
    let verification = Arc::new(unwritten(parts.table, parts.scope.clone(), now_us));
    let (reader, comparer) = readers(parts, &verification, progress);
    sample(&reader, &comparer, (share, rand::random()), shutdown).await
}

/// What reads SLS, and what reads Postgres.
fn readers(
    parts: &ContentParts,
    verification: &Arc<Verification>,
    progress: &Arc<Progress>,
) -> (ReaderParts, Comparer) {
    let reader = ReaderParts {
        client: parts.client.clone(),
        ledger: parts.ledger.clone(),
        verification: Arc::clone(verification),
        progress: Arc::clone(progress),
    };
    let comparer = Comparer::new(ComparerParts {
        source: parts.source.clone(),
        ledger: parts.ledger.clone(),
        verification: Arc::clone(verification),
        progress: Arc::clone(progress),
        current: parts.current.clone(),
        shape: parts.shape.clone(),
    });
    (reader, comparer)
}

/// Verifies one table; `None` when asked to stop: what was read is kept, and the next goes on.
pub async fn verify(
    parts: &ContentParts,
    verification: Verification,
    progress: &Arc<Progress>,
    shutdown: &Shutdown,
) -> anyhow::Result<Option<ContentReport>> {
    let ContentParts { source, ledger, recheck, .. } = parts;
    let look =
        Look { ended_at: verification.ended_at, ttl_days: parts.ttl_days, timings: parts.timings };
    let verification = Arc::new(verification);
    let (reader, comparer) = readers(parts, &verification, progress);
    let account = AccountParts { source, ledger, verification: &verification, progress };
    let spans = ledger.verification_spans(verification.id).await?;
    let targets = if *recheck { Some(Targets::of(ledger, &verification).await?) } else { None };
    let (read, compared, rows_accounted) = tokio::try_join!(
        shard_reader::read(&reader, spans, shutdown),
        async {
            match &targets {
                None => comparer.all(shutdown).await,
                Some(targets) => targets.compare(&comparer, &reader, shutdown).await,
            }
        },
        async {
            match &targets {
                None => unaccounted::look_through(&account, shutdown).await,
                Some(targets) => targets.account(&account).await.map(Some),
            }
        },
    )?;
    let (Some(read), Some(compared), Some(rows_accounted)) = (read, compared, rows_accounted)
    else {
        return Ok(None);
    };
    let verdicts = Verdict::ALL.map(Verdict::name);
    ledger.renew_findings(&verification, &verdicts, &[]).await?;
    let mut judge = Judge { ledger, verification: &verification, look, verdicts: BTreeMap::new() };
    judge.all().await?;
    let verdicts = judge.verdicts;
    explain(&reader, &comparer).await?;
    ledger.end_verification(verification.id).await?;
    let findings = ledger.finding_counts(verification.id).await?;
    Ok(Some(ContentReport {
        days: ledger.verified_days(&verification, &IN_SOURCE).await?,
        verdicts,
        read,
        compared,
        findings: findings
            .into_iter()
            .map(|(kind, findings, rows, found)| (kind, (findings, rows, found)))
            .collect(),
        rows_accounted,
        id: verification.id,
        ended_at: verification.ended_at,
        is_recheck: *recheck,
    }))
}

/// What differed in Postgres the last time. SLS is judged anew as a whole: what was read of it is
/// kept, and its logs do not change.
struct Targets {
    in_source: Vec<Uuid>,
    unaccounted: Vec<Uuid>,
}

impl Targets {
    async fn of(ledger: &Ledger, verification: &Verification) -> anyhow::Result<Self> {
        let mut in_source = BTreeSet::new();
        let (mut unaccounted, mut after) = (Vec::new(), 0);
        let kinds = [SOURCE_CHANGED, SOURCE_DIFFERS, SOURCE_GONE, NOT_COMPARED, UNACCOUNTED];
        loop {
            let findings =
                ledger.findings_of(verification.id, &kinds, after, PAGE_FINDINGS).await?;
            let Some((last, _)) = findings.last() else { break };
            after = *last;
            for (_, finding) in findings {
                match finding.batch_id {
                    Some(batch_id) => drop(in_source.insert(batch_id)),
                    None => unaccounted.extend(finding.row_ids),
                }
            }
        }
        Ok(Self { in_source: in_source.into_iter().collect(), unaccounted })
    }

    async fn compare(
        &self,
        comparer: &Comparer,
        reader: &ReaderParts,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Option<CompareTally>> {
        let (ledger, verification) = (&reader.ledger, &reader.verification);
        let mut tally = CompareTally::default();
        let mut all = Vec::new();
        for batch_id in &self.in_source {
            let Some(batch) = ledger.batch_to_compare_of(*batch_id).await? else { continue };
            match comparer.page(vec![batch], &mut tally, shutdown).await? {
                Some(findings) => all.extend(findings),
                None => return Ok(None),
            }
        }
        ledger.renew_findings(verification, &IN_SOURCE, &all).await?;
        Ok(Some(tally))
    }

    async fn account(&self, parts: &AccountParts<'_>) -> anyhow::Result<u64> {
        let AccountParts { source, ledger, verification, .. } = parts;
        let left =
            unaccounted::look_again(source, ledger, verification.table, &self.unaccounted).await?;
        let ids: Vec<_> = left.iter().map(|row| row.id).collect();
        let finding = (!ids.is_empty()).then(|| unaccounted::finding(ids));
        ledger.renew_findings(verification, &[UNACCOUNTED], finding.as_slice()).await?;
        Ok(self.unaccounted.len() as u64)
    }
}
