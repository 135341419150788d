//! A dry run: reads, converts and packs everything, and has nothing with which it could write.
//!
//! There is no ledger and no client here, and the source's transactions are read-only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use uuid::Uuid;

use crate::dify::conversion::Conversion;
use crate::pipeline::guard::budget::{MemoryBudget, RowBudget};
use crate::pipeline::progress::Progress;
use crate::pipeline::progress::watch::Watch;
use crate::pipeline::read::assemble::{Assembler, BatchName};
use crate::pipeline::read::range_scan::{RangeScan, ScanSettings};
use crate::pipeline::read::range_size::range_step;
use crate::pipeline::shutdown::Shutdown;
use crate::record::hold::HoldReason;
use crate::record::key::{Key, KeyOrder};
use crate::record::seal::Seal;
use crate::source::scope::{Scope, Span};

/// What a run would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Estimate {
    pub seen: u64,
    pub live: u64,
    pub held: BTreeMap<String, u64>,
    pub batches: u64,
    pub raw_bytes: u64,
    pub body_bytes: u64,
    pub not_json: u64,
}

impl Estimate {
    fn add(&mut self, other: &Self) {
        self.seen += other.seen;
        self.live += other.live;
        for (reason, rows) in &other.held {
            *self.held.entry(reason.clone()).or_default() += rows;
        }
        self.batches += other.batches;
        self.raw_bytes += other.raw_bytes;
        self.body_bytes += other.body_bytes;
        self.not_json += other.not_json;
    }
}

/// What a dry run works with.
pub struct DryRun {
    pub scan: ScanSettings,
    pub conversion: Conversion,
    pub scope: Scope,
    pub workers: usize,
    /// About how many rows a range has.
    pub range_rows: u32,
    pub progress: Arc<Progress>,
    pub memory: MemoryBudget,
    pub rows: RowBudget,
}

impl DryRun {
    /// Goes over the whole scope.
    pub async fn run(&self, shutdown: &Shutdown) -> anyhow::Result<Estimate> {
        let mut total = Estimate::default();
        self.run_order(self.scope.order, shutdown, &mut total).await?;
        if self.scope.order == KeyOrder::ByRun {
            self.run_order(KeyOrder::Rest, shutdown, &mut total).await?;
        }
        Ok(total)
    }

    async fn run_order(
        &self,
        order: KeyOrder,
        shutdown: &Shutdown,
        total: &mut Estimate,
    ) -> anyhow::Result<()> {
        let scope = Scope { order, ..self.scope.clone() };
        let step = range_step(order, self.range_rows);
        let spans = stream::try_unfold(Some(Key::START), |after| {
            let scope = &scope;
            async move {
                let Some(after) = after.filter(|_| !shutdown.is_asked()) else { return Ok(None) };
                let upto = self.scan.source.next_cut(scope, after, step).await?;
                anyhow::Ok(Some((Span { after, upto }, upto)))
            }
        });
        let mut estimates = spans
            .map_ok(|span| self.run_span(&scope, span, shutdown))
            .try_buffer_unordered(self.workers)
            .boxed();
        while let Some(estimate) = estimates.try_next().await? {
            total.add(&estimate);
        }
        Ok(())
    }

    async fn run_span(
        &self,
        scope: &Scope,
        span: Span,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Estimate> {
        let mut estimate = Estimate::default();
        let watch = Arc::new(Watch::new(&self.progress));
        let mut scan = RangeScan::of_span(self.scan.clone(), scope.clone(), span, watch);
        let mut assembler = Assembler::new(self.conversion.clone(), self.scan.shape.clone())?;
        // Nobody will read it.
        let seal = Seal::new(Uuid::nil(), [0; 32]);
        let name = BatchName { seal, batch_id: Uuid::nil(), sending: 1 };
        let logs_max = u64::from(self.scan.limits.batch_logs_max);
        while !shutdown.is_asked() {
            let mut taken = self.rows.take(logs_max);
            if taken.rows() == 0 {
                break;
            }
            let Some(cut) = scan.next(taken.rows()).await? else { break };
            taken.keep(cut.take.len() as u64);
            taken.spend();
            let _memory = self.memory.take(cut.take_bytes).await;
            let mut holds = cut.holds;
            let mut rest = cut.take;
            let seen = (rest.len() + holds.len()) as u64 + cut.expired;
            estimate.seen += seen;
            self.progress.seen.fetch_add(seen, Ordering::Relaxed);
            while !rest.is_empty() {
                let ScanSettings { source, bounds, .. } = &self.scan;
                let mut assembled = assembler.fill(source, &rest, bounds, 0).await?;
                rest = std::mem::take(&mut assembled.left_over);
                holds.append(&mut assembled.holds);
                if !assembled.rows.is_empty() {
                    let packed = assembler.pack(name, &assembled);
                    estimate.batches += 1;
                    estimate.live += assembled.rows.len() as u64;
                    estimate.raw_bytes += packed.raw_size as u64;
                    self.progress.raw_bytes.fetch_add(packed.raw_size as u64, Ordering::Relaxed);
                    estimate.body_bytes += packed.body.len() as u64;
                    estimate.not_json += u64::from(assembled.not_json);
                }
            }
            for reason in holds.iter().map(|hold| hold.reason) {
                *estimate.held.entry(reason.name().to_owned()).or_default() += 1;
            }
            if cut.expired > 0 {
                let expired = HoldReason::Expired.name().to_owned();
                *estimate.held.entry(expired).or_default() += cut.expired;
            }
        }
        Ok(estimate)
    }
}
