//! Looks ahead: the next rows of a range, page by page, until a batch can be cut.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use uuid::Uuid;

use crate::dify::eligibility::Bounds;
use crate::ledger::Ledger;
use crate::ledger::hold::{HeldRow, HoldsSpan};
use crate::ledger::range::{Lease, RangeKind};
use crate::pipeline::progress::watch::Watch;
use crate::pipeline::read::assemble::missed;
use crate::pipeline::read::batching::{
    BatchLimits, Candidate, Cut, Fate, Sought, cut, fate, is_enough,
};
use crate::pipeline::read::live_look::LiveLook;
use crate::record::hold::{HoldReason, LookAgain};
use crate::record::key::{Key, KeyOrder};
use crate::record::timestamp::Timestamp;
use crate::source::Source;
use crate::source::catalog::Shape;
use crate::source::page::Head;
use crate::source::scope::{Scope, Span};

/// Rows looked at by one statement. Their heads take about 200 bytes each.
const PAGE_ROWS: u32 = 4096;

/// Rows looked at and not yet in a step.
const PENDING_ROWS_MAX: usize = 2 * PAGE_ROWS as usize;

/// A walk passes over rows outside its window: one statement goes over so many index entries at
/// most, each of which may cost a random page or two.
const WALK_ENTRIES_MAX: u32 = 4 * PAGE_ROWS;

/// Where a range's rows come from, and by which rules their fate is decided.
#[derive(Clone)]
pub struct ScanSettings {
    pub source: Source,
    /// `None` in a dry run: it has no book, so no row is known.
    pub ledger: Option<Ledger>,
    pub shape: Shape,
    pub limits: BatchLimits,
    pub bounds: Bounds,
    /// Looks up what another writer may have stored; `None`: there is none.
    pub live_look: Option<Arc<LiveLook>>,
    /// A held row that has been missing for longer is gone.
    pub missed_before: Timestamp,
}

/// The rows of one range, in order.
pub struct RangeScan {
    settings: ScanSettings,
    rows: Rows,
    pending: VecDeque<Candidate>,
    /// Behind which key the next page begins.
    after: Key,
    is_exhausted: bool,
    watch: Arc<Watch>,
}

/// How the rows are found.
enum Rows {
    Keys { scope: Scope, upto: Option<Key> },
    Holds { look_again: LookAgain, upto: Option<Key>, ledger: Ledger },
}

impl RangeScan {
    /// The rows of `lease` behind its position. `scope` is that of the range's key order.
    pub fn of_lease(
        settings: ScanSettings,
        lease: &Lease,
        scope: Scope,
        watch: Arc<Watch>,
    ) -> Self {
        let rows = match (lease.kind, &settings.ledger) {
            (RangeKind::Holds(look_again), Some(ledger)) => {
                Rows::Holds { look_again, upto: lease.upto, ledger: ledger.clone() }
            }
            _ => Rows::Keys { scope, upto: lease.upto },
        };
        Self::new(settings, rows, lease.position, watch)
    }

    /// The rows of a span, without a book.
    pub fn of_span(settings: ScanSettings, scope: Scope, span: Span, watch: Arc<Watch>) -> Self {
        let after = span.after;
        Self::new(settings, Rows::Keys { scope, upto: span.upto }, after, watch)
    }

    fn new(settings: ScanSettings, rows: Rows, after: Key, watch: Arc<Watch>) -> Self {
        Self { settings, rows, pending: VecDeque::new(), after, is_exhausted: false, watch }
    }

    /// From now on batches are cut before they have more.
    pub fn set_batch_bytes(&mut self, batch_bytes: u64) {
        self.settings.limits.batch_bytes = batch_bytes;
    }

    /// The next step, with at most `rows_max` (at least 1) rows to read; `None` at the end.
    pub async fn next(&mut self, rows_max: u64) -> anyhow::Result<Option<Cut>> {
        while !self.is_exhausted
            // However few of them can be taken, so many rows are a step.
            && self.pending.len() < PENDING_ROWS_MAX
            && !is_enough(&self.pending, &self.settings.limits, rows_max)
        {
            self.fetch().await?;
        }
        if self.pending.is_empty() {
            return Ok(None);
        }
        Ok(Some(cut(&mut self.pending, &self.settings.limits, rows_max)))
    }

    async fn fetch(&mut self) -> anyhow::Result<()> {
        let page = match &self.rows {
            Rows::Keys { scope, upto } => {
                let ScanSettings { source, shape, .. } = &self.settings;
                let page_upto = match scope.order {
                    KeyOrder::Walk | KeyOrder::Rest => {
                        let next = source.next_cut(scope, self.after, WALK_ENTRIES_MAX).await?;
                        next.filter(|next| upto.is_none_or(|upto| *next < upto)).or(*upto)
                    }
                    KeyOrder::Time | KeyOrder::ByRun => *upto,
                };
                let span = Span { after: self.after, upto: page_upto };
                let heads = source.page(scope, shape, &span, PAGE_ROWS).await?;
                let is_short = heads.len() < PAGE_ROWS as usize;
                self.is_exhausted = is_short && page_upto == *upto;
                match (heads.last(), page_upto) {
                    (_, Some(page_upto)) if is_short => self.after = page_upto,
                    (Some(last), _) => self.after = last.key,
                    (None, _) => {}
                }
                let mut page = self.classify(heads, true).await?;
                page.iter_mut().for_each(count_expired);
                page
            }
            Rows::Holds { look_again, upto, ledger } => {
                let span = HoldsSpan { look_again: *look_again, after: self.after, upto: *upto };
                let page = self.fetch_holds(&span, ledger).await?;
                self.is_exhausted = page.len() < PAGE_ROWS as usize;
                if let Some(last) = page.last() {
                    self.after = last.key;
                }
                page
            }
        };
        self.pending.extend(page);
        Ok(())
    }

    async fn fetch_holds(
        &self,
        span: &HoldsSpan,
        ledger: &Ledger,
    ) -> anyhow::Result<Vec<Candidate>> {
        let ScanSettings { source, shape, missed_before, .. } = &self.settings;
        let held = ledger.next_holds(shape.table, span, PAGE_ROWS);
        let held = self.watch.ledger(held).await?;
        let ids: Vec<Uuid> = held.iter().map(|row| row.row_id).collect();
        let heads = source.page_of(shape, &ids).await?;
        let found = self.classify(heads, false).await?;
        let mut found: HashMap<Uuid, Candidate> =
            found.into_iter().map(|candidate| (candidate.row_id, candidate)).collect();
        let page = held.iter().map(|row| match found.remove(&row.row_id) {
            Some(candidate) => Candidate { key: row.key, ..candidate },
            None => missing(row, *missed_before),
        });
        Ok(page.collect())
    }

    /// Decides the rows' fates. Held rows count as known, unless it is them that are tried again.
    async fn classify(&self, heads: Vec<Head>, know_held: bool) -> anyhow::Result<Vec<Candidate>> {
        let ScanSettings { ledger, shape, bounds, live_look, .. } = &self.settings;
        let ids: Vec<_> = heads.iter().map(|head| head.row_id).collect();
        let known = match ledger {
            Some(ledger) => self.watch.ledger(ledger.known(shape.table, &ids, know_held)).await?,
            None => HashSet::new(),
        };
        let fate = |head: &Head| fate(shape.table, head, &known, bounds);
        let mut fates: Vec<Fate> = heads.iter().map(fate).collect();
        if let Some(live_look) = live_look {
            live_look.judge(&heads, &mut fates).await;
        }
        let candidate = |(head, fate): (Head, Fate)| Candidate {
            fate,
            key: head.key,
            row_id: head.row_id,
            created_at: head.created_at,
            finished_at: head.finished_at,
        };
        Ok(heads.into_iter().zip(fates).map(candidate).collect())
    }
}

/// A row that is read in the order of a key can be found there again, so that it need not be held
/// by its id for being too old: there may be millions of them.
fn count_expired(candidate: &mut Candidate) {
    if let Fate::Hold { reason: HoldReason::Expired, .. } = candidate.fate {
        candidate.fate = Fate::Expired;
    }
}

/// A held row that is not in the table. Another replica may have it, or it may come back: it is gone
/// only when it was missed long before.
fn missing(row: &HeldRow, missed_before: Timestamp) -> Candidate {
    let HeldRow { key, row_id, created_at, finished_at, reason } = *row;
    let fate = if reason == HoldReason::Missing && key.at < missed_before {
        Fate::Gone
    } else {
        let hold = missed(&Sought { id: row_id, created_at, finished_at });
        Fate::Hold { reason: hold.reason, detail: hold.detail, look_again: hold.look_again }
    };
    Candidate { key, row_id, created_at, finished_at, fate }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_row_is_gone_only_when_it_was_missed_long_before() {
        let at = Timestamp::from_unix_s;
        let row = |reason, held_s| HeldRow {
            key: Key::time(at(held_s), Uuid::nil()),
            row_id: Uuid::nil(),
            created_at: at(0),
            finished_at: None,
            reason,
        };
        for (reason, held_s, is_gone) in [
            (HoldReason::Running, 1, false),
            (HoldReason::Missing, 100, false),
            (HoldReason::Missing, 99, true),
        ] {
            let fate = missing(&row(reason, held_s), at(100)).fate;
            assert_eq!(matches!(fate, Fate::Gone), is_gone, "{reason:?} {held_s}");
            let is_missing = matches!(fate, Fate::Hold { reason: HoldReason::Missing, .. });
            assert_eq!(is_missing, !is_gone, "{reason:?} {held_s}");
        }
    }
}
