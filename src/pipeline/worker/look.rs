//! First stage of a worker: claims ranges, and looks at what is next in them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::ledger::claim::{Lease, RangeKind, Work};
use crate::ledger::intent::Step;
use crate::pipeline::budget::TakenRows;
use crate::pipeline::feed::Feed;
use crate::pipeline::progress::watch::Watch;
use crate::pipeline::stop::Stop;
use crate::pipeline::worker::{Held, Recount, Shared, next_range_rows, range_step};
use crate::record::key::KeyOrder;
use crate::source::scope::{Scope, Span};

/// How long a worker without work waits before it asks again.
const IDLE: Duration = Duration::from_millis(100);

/// What is next in a range.
pub(in crate::pipeline::worker) struct Looked {
    /// The range, which stands where this begins.
    pub(in crate::pipeline::worker) lease: Lease,
    pub(in crate::pipeline::worker) next: Next,
}

pub(in crate::pipeline::worker) enum Next {
    Rows(Box<Rows>),
    /// Nothing: it is read to its end. `rows_counted`: rows in it by one count.
    End {
        rows_counted: Option<u64>,
    },
}

/// Rows that are to be read.
pub(in crate::pipeline::worker) struct Rows {
    /// With the rows that are passed over.
    pub(in crate::pipeline::worker) step: Step,
    pub(in crate::pipeline::worker) row_ids: Vec<Uuid>,
    /// No more bytes than that come of them, unless they change.
    pub(in crate::pipeline::worker) bytes: u64,
    /// To be spent when they are in the ledger.
    pub(in crate::pipeline::worker) taken: TakenRows,
}

/// A range in work.
struct Range {
    /// It stands behind the last row that was looked at.
    lease: Lease,
    scope: Scope,
    feed: Feed,
}

/// The first stage of one worker.
pub(in crate::pipeline::worker) struct Looker {
    pub(in crate::pipeline::worker) shared: Arc<Shared>,
    pub(in crate::pipeline::worker) stop: Stop,
    pub(in crate::pipeline::worker) watch: Arc<Watch>,
    pub(in crate::pipeline::worker) held: Held,
}

impl Looker {
    /// Looks some steps ahead of who receives, until nobody does, or nothing is left to do: all is
    /// done, somebody has asked to stop, or the row budget is spent.
    pub(in crate::pipeline::worker) async fn run(
        mut self,
        sender: mpsc::Sender<Looked>,
    ) -> anyhow::Result<()> {
        let mut range = None;
        while let Ok(permit) = sender.reserve().await {
            let Some(looked) = self.next(&mut range, &sender).await? else { break };
            permit.send(looked);
        }
        Ok(())
    }

    async fn next(
        &mut self,
        current: &mut Option<Range>,
        sender: &mpsc::Sender<Looked>,
    ) -> anyhow::Result<Option<Looked>> {
        let range = match current {
            Some(range) => range,
            None => match self.next_range(sender).await? {
                Some(lease) => current.insert(self.begin(lease)),
                None => return Ok(None),
            },
        };
        let (range_id, table) = (range.lease.range_id, self.shared.scope.table);
        let Shared { health, progress, .. } = &*self.shared;
        health.pass(progress, &mut self.stop).await;
        let next = self.watch.work(self.look(range)).await;
        let Some(next) = next.with_context(|| format!("read range {range_id} of {table}"))? else {
            return Ok(None);
        };
        let lease = range.lease.clone();
        match &next {
            Next::Rows(rows) => range.lease.position = rows.step.position.unwrap_or(lease.position),
            Next::End { .. } => *current = None,
        }
        Ok(Some(Looked { lease, next }))
    }

    /// Claims a range, cuts a new one, or waits for the ranges of others that must come first.
    async fn next_range(&mut self, sender: &mpsc::Sender<Looked>) -> anyhow::Result<Option<Lease>> {
        let shared = Arc::clone(&self.shared);
        let Shared { ledger, process, pass_id, rows, scope, .. } = &*shared;
        while !self.stop.is_asked() && !rows.is_spent() && !sender.is_closed() {
            let Some(cutting) = self.stop.or(shared.cutting.lock()).await else { break };
            let work = self.watch.ledger(ledger.work(*pass_id, process));
            match self.watch.work(work).await? {
                Work::Range(lease) => return Ok(Some(lease)),
                Work::Done => return Ok(None),
                _ if shared.only_holds => return Ok(None),
                Work::Wait => {
                    drop(cutting);
                    self.stop.or(tokio::time::sleep(IDLE)).await;
                }
                Work::Cut(order, after) => {
                    let scope = Scope { order, ..scope.clone() };
                    let Shared { range_rows, workers, progress, .. } = &*shared;
                    let left = progress.rows_left();
                    let rows = next_range_rows(order, *range_rows, *workers, left);
                    let step = range_step(order, rows);
                    let upto = shared.feed.source.next_cut(&scope, after, step);
                    let upto = self.watch.work(upto).await?;
                    let cut = ledger.cut_range(*pass_id, process, order, after, upto);
                    let cut = self.watch.ledger(cut);
                    if let Some(lease) = self.watch.work(cut).await? {
                        return Ok(Some(lease));
                    }
                }
            }
        }
        Ok(None)
    }

    fn begin(&self, lease: Lease) -> Range {
        let order = match lease.kind {
            RangeKind::Keys(order) => order,
            RangeKind::Holds => KeyOrder::Walk,
        };
        self.held.add(&lease);
        let Shared { feed, scope, .. } = &*self.shared;
        let scope = Scope { order, ..scope.clone() };
        let feed = Feed::of_lease(feed.clone(), &lease, scope.clone(), Arc::clone(&self.watch));
        Range { lease, scope, feed }
    }

    async fn look(&self, range: &mut Range) -> anyhow::Result<Option<Next>> {
        let Shared { rows, feed, scope, .. } = &*self.shared;
        let mut taken = rows.take(u64::from(feed.limits.batch_logs_max));
        if self.stop.is_asked() || taken.rows() == 0 {
            return Ok(None);
        }
        let Some(cut) = range.feed.next(taken.rows()).await? else {
            return Ok(Some(Next::End { rows_counted: self.count(range).await }));
        };
        taken.keep(cut.take.len() as u64);
        let step = Step {
            holds: cut.holds,
            already: cut.already,
            gone: cut.gone,
            position: cut.position,
            ..Step::of(scope.table)
        };
        let (row_ids, bytes) = (cut.take, cut.take_bytes);
        Ok(Some(Next::Rows(Box::new(Rows { step, row_ids, bytes, taken }))))
    }

    /// Counts the rows of a range once more, as a check.
    async fn count(&self, range: &Range) -> Option<u64> {
        let Range { lease, scope, .. } = range;
        if self.shared.recount == Recount::No || lease.kind == RangeKind::Holds {
            return None;
        }
        let span = Span { after: lease.after, upto: lease.upto };
        match self.shared.feed.source.count(scope, &span).await {
            Ok(rows) => Some(rows),
            // Only a check: that it cannot be made must not keep the range from being done.
            Err(error) => {
                tracing::warn!("range {} is not counted again: {error:#}", lease.range_id);
                None
            }
        }
    }
}
