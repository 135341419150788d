//! Looks ahead: the next rows of a range, page by page, until a batch can be cut.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::range::{Lease, RangeKind};
use crate::pipeline::progress::watch::Watch;
use crate::pipeline::read::batching::{
    BatchLimits, Candidate, Cut, Fate, cut, fate, is_enough, unless_live,
};
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

/// Where a range's rows come from, and by what they are judged.
#[derive(Clone)]
pub struct ScanSettings {
    pub source: Source,
    /// `None` in a dry run: it has no book, so no row is known.
    pub ledger: Option<Ledger>,
    pub shape: Shape,
    pub limits: BatchLimits,
    /// Rows that finished later are held.
    pub settled_before: Timestamp,
    /// Held rows that are running and were created earlier are not looked at again.
    pub abandoned_before: Timestamp,
    /// Rows that finished earlier are held `expired`; `None`: none is too old.
    pub kept_since: Option<Timestamp>,
    /// Rows that have finished since are held `live?`; `None`: nobody else has stored them.
    pub live_since: Option<Timestamp>,
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
    Holds { pass_id: i64, ledger: Ledger },
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
            (RangeKind::Holds, Some(ledger)) => {
                Rows::Holds { pass_id: lease.pass_id, ledger: ledger.clone() }
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
                self.classify(heads, true).await?
            }
            Rows::Holds { pass_id, ledger } => {
                let page = self.fetch_holds(*pass_id, ledger).await?;
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

    async fn fetch_holds(&self, pass_id: i64, ledger: &Ledger) -> anyhow::Result<Vec<Candidate>> {
        let ScanSettings { source, shape, abandoned_before, .. } = &self.settings;
        let held = ledger.next_holds(pass_id, self.after.id, *abandoned_before, PAGE_ROWS);
        let held = self.watch.ledger(held).await?;
        let ids: Vec<Uuid> = held.iter().map(|(id, _)| *id).collect();
        let heads = source.page_of(shape, &ids).await?;
        let found: HashSet<Uuid> = heads.iter().map(|head| head.row_id).collect();
        let mut page = self.classify(heads, false).await?;
        let gone = held.into_iter().filter(|(id, _)| !found.contains(id));
        page.extend(gone.map(|(row_id, created_at)| Candidate {
            key: Key::walk(row_id),
            row_id,
            created_at,
            finished_at: None,
            fate: Fate::Gone,
        }));
        page.sort_unstable_by_key(|candidate| candidate.key);
        Ok(page)
    }

    /// Decides the rows' fates. Held rows count as known, unless it is them that are tried again.
    async fn classify(&self, heads: Vec<Head>, know_held: bool) -> anyhow::Result<Vec<Candidate>> {
        let ScanSettings { ledger, shape, limits, settled_before, kept_since, .. } = &self.settings;
        let rows: Vec<_> = heads.iter().map(|head| (head.row_id, head.created_at)).collect();
        let known = match ledger {
            Some(ledger) => self.watch.ledger(ledger.known(shape.table, &rows, know_held)).await?,
            None => HashSet::new(),
        };
        let fate = |head: &Head| {
            let fate = fate(shape.table, head, &known, *settled_before, *kept_since, limits);
            unless_live(fate, head, self.settings.live_since)
        };
        let candidate = |head: Head| Candidate {
            fate: fate(&head),
            key: head.key,
            row_id: head.row_id,
            created_at: head.created_at,
            finished_at: head.finished_at,
        };
        Ok(heads.into_iter().map(candidate).collect())
    }
}
