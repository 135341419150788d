//! Makes the new state of rows that have changed since they were sent ready to be sent.
//!
//! A row's older log stays in SLS for ever. The newer one has a higher `log_version`, so whoever
//! reads rows reads the newer; but readers of Dify 1.11 to 1.14 sum the tokens of all logs.

use std::collections::HashMap;

use anyhow::Context as _;
use uuid::Uuid;

use crate::dify::conversion::{Conversion, REVISIONS_MAX};
use crate::dify::eligibility::Bounds;
use crate::ledger::Ledger;
use crate::ledger::intent::NewBatch;
use crate::ledger::purge::ProvedBatch;
use crate::ledger::revision::{ChangedBatch, NewRevision};
use crate::pipeline::read::assemble::{Assembled, Assembler, BatchName};
use crate::pipeline::read::batching::Sought;
use crate::pipeline::verify::fresh_proof::{FRESH_FOR, FreshProof, pull, row_id};
use crate::record::day::Day;
use crate::record::timestamp::Timestamp;
use crate::sls::client::Client;
use crate::source::Source;
use crate::source::catalog::Shape;
use crate::wire::log_group::LogView;

/// What is needed to make new states of rows.
pub struct Reviser {
    pub source: Source,
    pub ledger: Ledger,
    pub client: Client,
    pub shape: Shape,
    /// The conversion of the source as it is now.
    pub current: Conversion,
    /// By what rows are judged that are sent once more.
    pub bounds: Bounds,
}

/// What there is to do about a row.
#[derive(Debug, Clone)]
pub enum Revision {
    /// Its new state can be sent.
    Ready {
        new: Box<NewRevision>,
        /// What its older log counts for in charts that sum all logs.
        earlier_tokens: u64,
    },
    /// It cannot, and why.
    Left { row_id: Uuid, why: String },
}

/// What a row's log says of it.
#[derive(Debug, Clone, Copy, Default)]
struct Earlier {
    finished_at: Option<Timestamp>,
    log_version: i64,
    tokens: u64,
}

impl Earlier {
    fn of(log: &LogView<'_>) -> Self {
        let field = |name: &str| {
            let found = log.contents.iter().find(|(key, _)| *key == name.as_bytes());
            found.and_then(|(_, value)| std::str::from_utf8(value).ok())
        };
        let number = |name: &str| field(name).and_then(|text| text.parse::<i64>().ok());
        Self {
            finished_at: field("finished_at").and_then(Timestamp::from_isoformat),
            log_version: number("log_version").unwrap_or(0),
            tokens: number("total_tokens").and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
        }
    }
}

/// One row after the other, by the batch's own way of making logs.
struct Makers {
    /// As the batch was made, with columns that have come since.
    as_before: Assembler,
    /// With the next revision.
    next: Assembler,
    conversion: Conversion,
}

impl Reviser {
    /// Pulls a batch back, and makes the new state of those of its rows that differ from their logs;
    /// in words why nothing can be done about any of them.
    pub async fn revisions(
        &self,
        changed: &ChangedBatch,
    ) -> anyhow::Result<Result<Vec<Revision>, String>> {
        let batch = self.ledger.batches_by_id(vec![changed.id]).await?.into_iter().next();
        let batch = batch.context("the ledger has lost a batch")?;
        let mut makers = match self.makers(&batch)? {
            Ok(makers) => makers,
            Err(why) => return Ok(Err(why)),
        };
        let mut earlier: HashMap<Uuid, Earlier> = HashMap::new();
        let pulled = pull(&self.client, &self.ledger.seal, &batch, FRESH_FOR, |log| {
            if let Some(id) = row_id(log).filter(|id| changed.row_ids.contains(id)) {
                earlier.insert(id, Earlier::of(log));
            }
        });
        let proof = match pulled.await? {
            Ok(proof) => proof,
            Err(why) => {
                return Ok(Err(format!("{why}; nothing is added to it before that is well")));
            }
        };
        let mut revisions = Vec::new();
        for id in &changed.row_ids {
            let earlier = earlier.get(id).copied().unwrap_or_default();
            revisions.extend(self.revision(&batch, &proof, &mut makers, (*id, earlier)).await?);
        }
        Ok(Ok(revisions))
    }

    fn makers(&self, batch: &ProvedBatch) -> anyhow::Result<Result<Makers, String>> {
        let Some(body) = batch.conversion.clone() else {
            return Ok(Err("nobody knows by which conversion its logs were made".to_owned()));
        };
        let then: Conversion =
            serde_json::from_value(body).context("read the batch's conversion from the ledger")?;
        if !then.can_be_repeated(&self.current) {
            let differences = then.differences(&self.current).join(", and ");
            return Ok(Err(format!("since it was made {differences}")));
        }
        if then.revision >= REVISIONS_MAX {
            return Ok(Err(
                "it was sent so often that no number is left for a newer log".to_owned()
            ));
        }
        let as_before = Conversion { columns: self.current.columns.clone(), ..then };
        let conversion = Conversion { revision: as_before.revision + 1, ..as_before.clone() };
        Ok(Ok(Makers {
            as_before: Assembler::new(as_before, self.shape.clone())?,
            next: Assembler::new(conversion.clone(), self.shape.clone())?,
            conversion,
        }))
    }

    /// What there is to do about a row; `None` if it makes its log still.
    async fn revision(
        &self,
        batch: &ProvedBatch,
        proof: &FreshProof,
        makers: &mut Makers,
        (row_id, earlier): (Uuid, Earlier),
    ) -> anyhow::Result<Option<Revision>> {
        let left = |why: &str| Ok(Some(Revision::Left { row_id, why: why.to_owned() }));
        let row = [Sought { id: row_id, created_at: Timestamp::NEG_INFINITY, finished_at: None }];
        let source = &self.source;
        let before = makers.as_before.fill(source, &row, &Bounds::NONE, batch.ingest_time).await?;
        if proof.digest_of(row_id).is_some_and(|proved| proved == before.digest) {
            return Ok(None);
        }
        let ingest_time = u32::try_from(self.client.now()).unwrap_or(u32::MAX);
        let now = makers.next.fill(source, &row, &self.bounds, ingest_time).await?;
        let [made] = now.rows.as_slice() else {
            return left(now.holds.first().map_or("it is too large", |hold| hold.detail.as_str()));
        };
        let earlier_day = earlier.finished_at.and_then(Day::of);
        let Some(earlier_day) = earlier_day else { return left("its log has no finish time") };
        let finished_us = made.finished_at.unix_us().unwrap_or(i64::MIN / 1000);
        let log_version = finished_us * 1000 + 2 * i64::from(makers.conversion.revision);
        if log_version <= earlier.log_version {
            return left("it finished earlier than its log says, so Dify would take the older log");
        }
        let batch_id = Uuid::now_v7();
        let name = BatchName { seal: self.ledger.seal, batch_id, sending: 1 };
        // It will be sent from what is read then; only its size is asked for.
        let raw_bytes = makers.next.finish(name, &now) as u64;
        let Assembled { rows, digest, not_json, .. } = now;
        let new = NewRevision {
            revises: batch.id,
            earlier_day,
            conversion: serde_json::to_value(&makers.conversion)?,
            batch: NewBatch {
                id: batch_id,
                rows,
                raw_bytes,
                digest,
                not_json,
                conversion_id: 0,
                sending: None,
                ingest_time,
            },
        };
        Ok(Some(Revision::Ready { new: Box::new(new), earlier_tokens: earlier.tokens }))
    }
}
