//! A quick look at some batches: they are pulled from where the ledger has them, and compared. It
//! sees no double that lies elsewhere, and proves nothing.

use std::sync::atomic::Ordering;

use uuid::Uuid;

use crate::ledger::verification::{BatchScope, Verification};
use crate::ledger::verified_batches::BatchToCompare;
use crate::pipeline::shutdown::Shutdown;
use crate::pipeline::verify::content::compare::{CompareTally, Comparer};
use crate::pipeline::verify::content::refetch::{Stretch, refetch};
use crate::pipeline::verify::content::shard_reader::ReaderParts;
use crate::record::table::Table;
use crate::sls::tag_sums::BatchName;

/// Batches read from the ledger at once.
const PAGE_BATCHES: u32 = 64;

/// What a sample gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SampleReport {
    pub batches: u64,
    pub rows: u64,
    /// Batches that SLS holds whole.
    pub equal: u64,
    /// Batches whose rows are in Postgres as they were.
    pub source: CompareTally,
    /// Those that SLS does not hold whole, with the rows they should have and the logs found.
    pub differ: Vec<(Uuid, u64, u64)>,
    /// Batches that differ from Postgres.
    pub source_differs: Vec<Uuid>,
}

/// A scope that is nowhere written down.
pub fn unwritten(table: Table, scope: BatchScope, now_us: i64) -> Verification {
    Verification {
        id: 0,
        table,
        scope,
        is_done: false,
        noted_at_us: now_us,
        ended_at: 0,
        compared_after: Uuid::nil(),
        tally: serde_json::Value::Null,
    }
}

/// Looks at about `share` hundredths of a percent of the batches, chosen by `seed`; `None` when
/// asked to stop.
pub async fn sample(
    reader: &ReaderParts,
    comparer: &Comparer,
    (share, seed): (u32, i64),
    shutdown: &Shutdown,
) -> anyhow::Result<Option<SampleReport>> {
    let (ledger, verification) = (&reader.ledger, &reader.verification);
    let (mut report, mut after) = (SampleReport::default(), Uuid::nil());
    loop {
        let batches =
            ledger.sampled_batches(verification, (share, seed), after, PAGE_BATCHES).await?;
        let Some(last) = batches.last() else { return Ok(Some(report)) };
        after = last.id;
        for batch in batches {
            if shutdown.is_asked() {
                return Ok(None);
            }
            look_at(reader, &batch, &mut report).await?;
            let compared = comparer.page(vec![batch.clone()], &mut report.source, shutdown).await?;
            let Some(findings) = compared else { return Ok(None) };
            report.source_differs.extend(findings.iter().filter_map(|finding| finding.batch_id));
        }
    }
}

async fn look_at(
    reader: &ReaderParts,
    batch: &BatchToCompare,
    report: &mut SampleReport,
) -> anyhow::Result<()> {
    let places = reader.ledger.places(batch.id).await?;
    let stretch = |(shard, cursor, end_cursor)| Stretch { shard, cursor, end_cursor };
    let stretches: Vec<_> = places.into_iter().map(stretch).collect();
    let name = BatchName { ledger_id: batch.ledger_id, batch_id: batch.id };
    let logstore = reader.verification.table.logstore();
    let wanted = &batch.wanted;
    let refetched =
        refetch(&reader.client, (&reader.ledger.seal, logstore), (name, wanted.rows), &stretches)
            .await?;
    let sum = refetched.sum();
    report.batches += 1;
    report.rows += wanted.rows;
    reader.progress.seen.fetch_add(wanted.rows, Ordering::Relaxed);
    if (sum.rows, sum.digest) == (wanted.rows, wanted.digest) {
        report.equal += 1;
    } else {
        report.differ.push((batch.id, wanted.rows, sum.rows));
    }
    Ok(())
}
