//! How an open batch ends: sent again, halved, held, or replaced by what its rows are now.

use std::collections::HashSet;
use std::ops::ControlFlow;

use anyhow::Context as _;
use uuid::Uuid;

use crate::dify::conversion::Conversion;
use crate::dify::eligibility::Bounds;
use crate::ledger::hold::NewHold;
use crate::ledger::in_doubt::{Absence, InDoubtBatch, Reason, Replacement};
use crate::ledger::intent::{NewBatch, Sending};
use crate::pipeline::progress::watch::Watch;
use crate::pipeline::read::assemble::{Assembled, Assembler, BatchName, Packed, missed};
use crate::pipeline::read::batching::{Candidate, Cut, Sought, cut, fate};
use crate::pipeline::recover::resolver::{Resend, Resolver, ResolverParts};
use crate::pipeline::recover::rules::is_suspect;
use crate::pipeline::retry::with_retries;
use crate::pipeline::send::lane_keeper::{LaneSlot, home, is_at_home};
use crate::pipeline::send::sender::{IntendedBatch, SendOutcome, Sender};
use crate::record::hold::HoldReason;
use crate::source::page::Head;

/// When SLS refuses so many rows one by one, something is wrong with all of them.
const REFUSED_ROWS_MAX: u64 = 100;

impl Resolver {
    /// Ends a batch the given way, or finds that it must wait after all.
    pub(in crate::pipeline::recover::resolver) async fn end(
        &mut self,
        batch: InDoubtBatch,
        resend: Resend,
    ) -> anyhow::Result<()> {
        let _memory = self.parts.memory.take(batch.raw_bytes).await;
        match (resend, &batch.report.refusal, batch.row_ids.len()) {
            (Resend::Anew, Some(refusal), 1) => {
                let detail = format!("{refusal} to this row alone");
                self.hold_refused(&batch, detail).await
            }
            (Resend::Anew, _, 2..) if is_suspect(&batch) => {
                let (first, second) = batch.row_ids.split_at(batch.row_ids.len() / 2);
                let mut replacement = Replacement::default();
                let bounds = self.parts.bounds.of_looked_up();
                self.make_anew(&batch, first, bounds, &mut replacement).await?;
                self.make_anew(&batch, second, bounds, &mut replacement).await?;
                let is_split = self.replace(&batch, Reason::Split, &replacement).await?;
                self.resolved.halved += u64::from(is_split);
                Ok(())
            }
            _ => self.send_again(batch, resend).await,
        }
    }

    async fn hold_refused(&mut self, batch: &InDoubtBatch, detail: String) -> anyhow::Result<()> {
        let mut replacement = Replacement::default();
        let bounds = self.parts.bounds.of_looked_up();
        self.make_anew(batch, &batch.row_ids, bounds, &mut replacement).await?;
        let rows = replacement.batches.drain(..).flat_map(|batch| batch.rows);
        let refused: Vec<_> = rows
            .map(|row| NewHold {
                row_id: row.id,
                created_at: row.created_at,
                finished_at: Some(row.finished_at),
                reason: HoldReason::Refused,
                detail: detail.clone(),
                look_again: HoldReason::Refused.look_again(),
            })
            .collect();
        let refused_rows = refused.len() as u64;
        replacement.holds.extend(refused);
        if self.replace(batch, Reason::Split, &replacement).await? {
            self.resolved.refused_rows += refused_rows;
        }
        anyhow::ensure!(
            self.resolved.refused_rows < REFUSED_ROWS_MAX,
            "SLS refused {REFUSED_ROWS_MAX} rows one by one: {detail}\n\
             they are held (`dify-sls-backfill status`), and nothing is lost\n\
             hint: find out what SLS dislikes about them before you go on"
        );
        Ok(())
    }

    /// Sends a batch once more, if its rows are what they were.
    async fn send_again(&mut self, batch: InDoubtBatch, resend: Resend) -> anyhow::Result<()> {
        let Some(packed) = self.pack_again(&batch, resend).await? else {
            if resend == Resend::SameNumber {
                tracing::info!(
                    "batch {}: its rows have changed in Postgres since it was sent; it is waited \
                     for",
                    batch.id
                );
                self.wait_for(batch);
                return Ok(());
            }
            let mut replacement = Replacement::default();
            if batch.is_revision {
                tracing::warn!(
                    "row {} has changed once more before its new state was sent\n\
                     hint: `dify-sls-backfill verify --level content`, then `repair --changed`",
                    batch.row_ids[0]
                );
            } else {
                // A run looks up again what has changed in the time of another writer.
                let bounds = self.parts.bounds;
                self.make_anew(&batch, &batch.row_ids, bounds, &mut replacement).await?;
            }
            let is_abandoned = self.replace(&batch, Reason::Abandoned, &replacement).await?;
            self.resolved.abandoned += u64::from(is_abandoned);
            return Ok(());
        };
        let signed = match resend {
            Resend::SameNumber => self.sign_same_number(&batch).await?,
            Resend::Anew => self.sign_anew(&batch).await?,
        };
        let Some((slot, signed_at)) = signed else { return Ok(()) };
        let ResolverParts {
            client,
            signing_lease,
            ledger,
            process,
            progress,
            pace,
            guarantees,
            table,
            ..
        } = &self.parts;
        let watch = &Watch::new(progress);
        let sender = Sender {
            client,
            signing_lease,
            ledger,
            process,
            progress,
            watch,
            pace,
            guarantees: *guarantees,
        };
        let logstore = table.logstore();
        let sent = batch.sent.as_ref().filter(|_| resend == Resend::SameNumber);
        let intended = IntendedBatch {
            batch_id: batch.id,
            logstore,
            slot: &slot,
            signed_at,
            unknown_since: sent.map(|sent| sent.signed_at),
            packed: &packed,
        };
        if is_suspect(&batch) {
            let (row, tries) = (batch.row_ids[0], batch.report.unknowns);
            tracing::warn!("row {row} alone: SLS has not answered {tries} attempts to store it");
        }
        match sender.send(&intended, None, &mut self.shutdown).await? {
            SendOutcome::Stored(request_id) => {
                sender.acknowledge(batch.id, request_id).await?;
                self.resolved.sent += 1;
                self.resolved.sent_rows += batch.wanted.rows;
            }
            SendOutcome::Found => self.resolved.found += 1,
            SendOutcome::GivenUp(flow) => {
                self.lane.forget_cursors();
                self.is_silent |= flow == ControlFlow::Break(());
            }
        }
        Ok(())
    }

    /// The batch as it was, or `None` if its rows have changed.
    async fn pack_again(
        &mut self,
        batch: &InDoubtBatch,
        resend: Resend,
    ) -> anyhow::Result<Option<Packed>> {
        let mut own;
        let assembler = if batch.conversion_id == self.parts.conversion_id {
            &mut self.assembler
        } else {
            let conversion: Conversion = serde_json::from_value(batch.conversion.clone())
                .context("read the batch's conversion from the ledger")?;
            if !conversion.can_be_repeated(&self.parts.conversion) {
                return Ok(None);
            }
            own = Assembler::new(conversion, self.parts.shape.clone())?;
            &mut own
        };
        // These rows were judged when the intent was made; whether they are the same is seen below.
        let rows: Vec<_> = batch.row_ids.iter().map(|id| sought(*id, batch)).collect();
        let source = &self.parts.source;
        let assembled = assembler.fill(source, &rows, &Bounds::NONE, batch.ingest_time).await?;
        let is_same =
            assembled.digest == batch.wanted.digest && assembled.rows.len() == batch.row_ids.len();
        let sending = sending_of(batch, resend);
        let name = BatchName { seal: self.parts.ledger.seal, batch_id: batch.id, sending };
        Ok(is_same.then(|| assembler.pack(name, &assembled)))
    }

    /// Tells the ledger that a number is about to be repeated. It keeps its date, so no request of
    /// it lives longer than SLS certainly keeps the number. `None`: it is stored, or must be waited
    /// for.
    async fn sign_same_number(
        &mut self,
        batch: &InDoubtBatch,
    ) -> anyhow::Result<Option<(LaneSlot, i64)>> {
        let ResolverParts { ledger, process, client, table, .. } = &self.parts;
        let sent = batch.sent.as_ref().context("the batch was never sent")?;
        let logstore = table.logstore();
        let shards = with_retries(|| client.shards(logstore))
            .await
            .with_context(|| format!("list the shards of {logstore}"))?;
        if !is_at_home(&sent.hash_key, &sent.cursors, &shards) {
            self.wait_for(batch.clone());
            return Ok(None);
        }
        if !ledger.signed_anew(process, batch.id, sent.signed_at).await? {
            self.resolved.found += 1;
            return Ok(None);
        }
        let (hash_key, cursors) = (sent.hash_key.clone(), sent.cursors.clone());
        let shard = home(&hash_key, &shards);
        let slot =
            LaneSlot { lane_id: sent.lane_id, hash_key, number: sent.number, shard, cursors };
        Ok(Some((slot, sent.signed_at)))
    }

    /// Gives the batch a new number, in the ledger first. `None`: it is stored, must be looked for
    /// once more, or somebody asks to stop.
    async fn sign_anew(&mut self, batch: &InDoubtBatch) -> anyhow::Result<Option<(LaneSlot, i64)>> {
        let Some(slot) = self.lane.next_slot(&mut self.shutdown).await? else {
            return Ok(None);
        };
        let ResolverParts { ledger, process, client, signing_lease, progress, .. } = &self.parts;
        let Some(signed_at) = signing_lease.sign_date(client, progress, &mut self.shutdown).await
        else {
            return Ok(None);
        };
        let sending = Sending {
            owner: process.id,
            lane_id: slot.lane_id,
            number: slot.number,
            nth: sending_of(batch, Resend::Anew),
            signed_at,
            cursors: slot.cursors.clone(),
        };
        let absence = ledger.renumbered(batch.id, &sending).await?;
        if !self.is_absent(batch, absence) {
            return Ok(None);
        }
        self.lane.used(&slot);
        Ok(Some((slot, signed_at)))
    }

    /// Puts the batch back: it is not repeated, and looked for when it cannot come any more.
    fn wait_for(&mut self, batch: InDoubtBatch) {
        self.unrepeatable.insert(batch.id);
        self.open.insert(batch.id, batch);
    }

    /// Makes batches and holds of rows of `old` as they are now, judged by `bounds`.
    async fn make_anew(
        &mut self,
        old: &InDoubtBatch,
        row_ids: &[Uuid],
        bounds: Bounds,
        replacement: &mut Replacement,
    ) -> anyhow::Result<()> {
        let ResolverParts { source, shape, limits, .. } = &self.parts;
        // Their sizes first: what has grown over the limits is not read.
        let heads = source.page_of(shape, row_ids).await?;
        let found: HashSet<Uuid> = heads.iter().map(|head| head.row_id).collect();
        let missing = row_ids.iter().filter(|id| !found.contains(id));
        replacement.holds.extend(missing.map(|id| missed(&sought(*id, old))));
        let candidate = |head: Head| {
            let fate = fate(shape.table, &head, &HashSet::new(), &bounds);
            let Head { key, row_id, created_at, finished_at, .. } = head;
            Candidate { key, row_id, created_at, finished_at, fate }
        };
        let (mut pending, limits) = (heads.into_iter().map(candidate).collect(), limits.clone());
        loop {
            let Cut { take, mut holds, position, .. } = cut(&mut pending, &limits, u64::MAX);
            replacement.holds.append(&mut holds);
            self.make_batches(take, bounds, replacement).await?;
            if position.is_none() {
                return Ok(());
            }
        }
    }

    /// Makes batches of rows that are fit, as far as their heads tell.
    async fn make_batches(
        &mut self,
        mut rest: Vec<Sought>,
        bounds: Bounds,
        replacement: &mut Replacement,
    ) -> anyhow::Result<()> {
        let ResolverParts { source, ledger, client, conversion_id, .. } = &self.parts;
        let ingest_time = u32::try_from(client.now()).unwrap_or(u32::MAX);
        while !rest.is_empty() {
            let mut assembled = self.assembler.fill(source, &rest, &bounds, ingest_time).await?;
            rest = std::mem::take(&mut assembled.left_over);
            replacement.holds.append(&mut assembled.holds);
            if assembled.rows.is_empty() {
                continue;
            }
            let id = Uuid::now_v7();
            // It will be sent from what is read then; only its size is asked for.
            let name = BatchName { seal: ledger.seal, batch_id: id, sending: 1 };
            let raw_bytes = self.assembler.finish(name, &assembled) as u64;
            let Assembled { rows, digest, not_json, .. } = assembled;
            replacement.batches.push(NewBatch {
                id,
                rows,
                raw_bytes,
                digest,
                not_json,
                conversion_id: *conversion_id,
                sending: None,
                ingest_time,
            });
        }
        Ok(())
    }

    /// Puts others in the place of the batch. `false`: it is stored, or must be looked for once more.
    async fn replace(
        &mut self,
        batch: &InDoubtBatch,
        reason: Reason,
        replacement: &Replacement,
    ) -> anyhow::Result<bool> {
        let ResolverParts { ledger, process, .. } = &self.parts;
        let absence = ledger.replace(process, batch, reason, replacement).await?;
        Ok(self.is_absent(batch, absence))
    }

    /// Whether a write that rests on nothing of the batch being in SLS was done; if not, the batch is
    /// ended, or put back.
    fn is_absent(&mut self, batch: &InDoubtBatch, absence: Absence) -> bool {
        match absence {
            Absence::Held => {}
            Absence::Stored => self.resolved.found += 1,
            Absence::Seen => {
                self.open.insert(batch.id, batch.clone());
            }
        }
        absence == Absence::Held
    }
}

/// Which sending of the batch it will be: another number is another one.
fn sending_of(batch: &InDoubtBatch, resend: Resend) -> u32 {
    match resend {
        Resend::Anew => batch.sendings + 1,
        Resend::SameNumber => batch.sendings,
    }
}

/// A row of a batch; when it was created is not in the ledger, but when the first of them was.
fn sought(id: Uuid, batch: &InDoubtBatch) -> Sought {
    Sought { id, created_at: batch.created_first, finished_at: None }
}
