//! What a run would do, before anything is sent: by a look at some pages of each table, or at all of
//! its rows, and by converting some of them.
//!
//! Pages are chosen by chance, all of them where there are few, so the cost does not grow with the
//! table. What is on them is counted, judged as a run judges it, and multiplied. Some stretches
//! of rows are read, converted and packed in the order in which a run reads, since neighbours look
//! alike and compress well.

pub mod forecast;
pub mod prices;
pub mod tally;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::dify::conversion::Conversion;
use crate::dify::eligibility::Bounds;
use crate::pipeline::plan::tally::{Judged, Known, Packer, Tally};
use crate::pipeline::read::assemble::{Assembler, BatchName};
use crate::pipeline::read::batching::{BatchLimits, Fate, Sought, fate};
use crate::pipeline::shutdown::Shutdown;
use crate::record::key::{Key, KeyOrder};
use crate::record::seal::Seal;
use crate::record::timestamp::Timestamp;
use crate::source::Source;
use crate::source::catalog::Shape;
use crate::source::page::Head;
use crate::source::sample::{Part, SampledHead};
use crate::source::scope::{Scope, Span};

/// So many pages are looked at: 64 MiB, which takes a second or a few.
const PAGES_MAX: u64 = 8192;

/// So many stretches of rows are converted, each of so many rows and bytes.
const STRETCHES: usize = 8;
const STRETCH_ROWS: u32 = 512;
const STRETCH_BYTES_MAX: u64 = 4 << 20;

/// What is looked at, and how it is judged.
pub struct TablePlan {
    pub source: Source,
    pub shape: Shape,
    pub scope: Scope,
    pub bounds: Bounds,
    pub conversion: Conversion,
    pub limits: BatchLimits,
    /// Rows created earlier are in an earlier pass.
    pub known: Known,
    /// Rows that finished before it could be purged.
    pub purge_before: Timestamp,
    /// Look at every row.
    pub is_exact: bool,
    pub seed: u32,
}

/// What was seen, for all of the table.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub tally: Tally,
    /// Bytes before and after compression, of all rows that would be sent.
    pub raw_bytes: f64,
    pub body_bytes: f64,
    /// Rows that were looked at.
    pub looked_at: u64,
    pub converted: Converted,
}

/// What some rows became, and how long it took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Converted {
    pub text_bytes: u64,
    pub raw_bytes: u64,
    pub body_bytes: u64,
    /// Read from Postgres and converted.
    pub read: Duration,
    /// Packed and compressed.
    pub packed: Duration,
}

impl TablePlan {
    /// Looks; `None` when asked to stop.
    pub async fn look(&self, shutdown: &Shutdown) -> anyhow::Result<Option<Seen>> {
        let pages = self.source.pages(self.shape.table).await?;
        let mut seen = Seen::default();
        let mut places = Vec::new();
        if self.is_exact || !pages.is_plain {
            let mut slices = self.source.slices(self.shape.table).await?;
            while let Some(slice) = slices.next().await? {
                if shutdown.is_asked() {
                    return Ok(None);
                }
                let part = Part::Slice(slice);
                let mut heads = self.source.sample(&self.scope, &self.shape, part).await?;
                self.count(&mut heads, 1.0, &mut seen);
                places.extend(self.places(&heads));
                thin_out(&mut places, 2 * STRETCHES);
            }
        } else {
            let percent = (100.0 * PAGES_MAX as f64 / pages.pages.max(1) as f64).min(100.0);
            let part = Part::Chance { percent, seed: self.seed };
            let mut heads = self.source.sample(&self.scope, &self.shape, part).await?;
            self.count(&mut heads, 100.0 / percent, &mut seen);
            places = self.places(&heads);
        }
        thin_out(&mut places, STRETCHES);
        self.convert(places, &mut seen).await?;
        Ok(Some(seen))
    }

    fn count(&self, heads: &mut [SampledHead], weight: f64, seen: &mut Seen) {
        seen.looked_at += heads.len() as u64;
        // Neighbours share a batch.
        heads.sort_by_key(|SampledHead { head, .. }| (head.created_at, head.row_id));
        let mut packer = Packer::default();
        let Self { bounds, known, purge_before, .. } = self;
        let judged = Judged { bounds, known: *known, purge_before: *purge_before };
        for head in heads {
            if let Some(bytes) = seen.tally.add(self.shape.table, head, weight, judged) {
                packer.add(bytes, &self.limits);
            }
        }
        seen.tally.packed += weight * packer.batches(&self.limits);
    }

    /// Places to begin a stretch at, in the order in which a run reads, evenly spread over those
    /// rows that would be sent.
    fn places(&self, heads: &[SampledHead]) -> Vec<Key> {
        let taken = heads.iter().map(|sampled| &sampled.head).filter(|head| self.is_taken(head));
        let mut taken: Vec<&Head> = taken.collect();
        taken.sort_by_key(|head| (head.created_at, head.row_id));
        let place = |nth: usize| {
            let Head { created_at, row_id, .. } = *taken[nth * taken.len() / STRETCHES];
            match self.scope.order {
                _ if nth == 0 => Key::START,
                KeyOrder::Time => Key::time(created_at, row_id),
                // A run begins about when its nodes do.
                KeyOrder::ByRun => Key { at: created_at, id: Uuid::nil(), node: Uuid::nil() },
                KeyOrder::Walk | KeyOrder::Rest => Key::walk(row_id),
            }
        };
        if taken.is_empty() { Vec::new() } else { (0..STRETCHES).map(place).collect() }
    }

    fn is_taken(&self, head: &Head) -> bool {
        let is_new = self.known.created_before.is_none_or(|before| head.created_at >= before);
        let fate = fate(self.shape.table, head, &HashSet::new(), &self.bounds);
        is_new && matches!(fate, Fate::Take { .. })
    }

    /// Converts and packs, stretch by stretch, as a run would; what that weighs stands for all.
    async fn convert(&self, places: Vec<Key>, seen: &mut Seen) -> anyhow::Result<()> {
        let mut total = Converted::default();
        for after in places {
            let span = Span { after, upto: None };
            let begin = Instant::now();
            let heads = self.source.page(&self.scope, &self.shape, &span, STRETCH_ROWS).await?;
            total.read += begin.elapsed();
            let heads: Vec<Head> = heads.into_iter().filter(|head| self.is_taken(head)).collect();
            self.convert_stretch(&heads, &mut total).await?;
        }
        let share = seen.tally.text_bytes / total.text_bytes.max(1) as f64;
        seen.raw_bytes = total.raw_bytes as f64 * share;
        seen.body_bytes = total.body_bytes as f64 * share;
        seen.converted = total;
        Ok(())
    }

    async fn convert_stretch(&self, heads: &[Head], total: &mut Converted) -> anyhow::Result<()> {
        let mut assembler = Assembler::new(self.conversion.clone(), self.shape.clone())?;
        let seal = Seal::new(Uuid::nil(), [0; 32]);
        let name = BatchName { seal, batch_id: Uuid::nil(), sending: 1 };
        let (mut rest, mut text_bytes) = (heads, 0);
        while !rest.is_empty() && text_bytes < STRETCH_BYTES_MAX {
            let (mut rows, mut batch_bytes) = (Vec::new(), 0);
            while let Some((head, others)) = rest.split_first() {
                batch_bytes += head.log_bytes_max();
                if !rows.is_empty() && batch_bytes > self.limits.batch_bytes {
                    break;
                }
                let Head { row_id, created_at, finished_at, .. } = *head;
                rows.push(Sought { id: row_id, created_at, finished_at });
                text_bytes += head.text_bytes.max(1);
                rest = others;
            }
            let begin = Instant::now();
            // The log time does not change what a log weighs.
            let assembled = assembler.fill(&self.source, &rows, &self.bounds, 0).await?;
            total.read += begin.elapsed();
            let begin = Instant::now();
            let packed = assembler.pack(name, &assembled);
            total.packed += begin.elapsed();
            total.raw_bytes += packed.raw_size as u64;
            total.body_bytes += packed.body.len() as u64;
        }
        total.text_bytes += text_bytes;
        Ok(())
    }
}

/// Leaves every other place out until there are few enough.
fn thin_out(places: &mut Vec<Key>, most: usize) {
    while places.len() > most {
        *places = places.iter().copied().step_by(2).collect();
    }
}
