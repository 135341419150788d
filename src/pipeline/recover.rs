//! Intents of processes that have ended: finds out what became of them, and sends them again if
//! need be.
//!
//! 1. The tail reader catches up. What it finds whole is stored, and nothing is sent.
//! 2. What it does not find goes out again with the same number, if the rows are still the same:
//!    SLS stores a number once.
//! 3. What is left stays an intent: the number is used up and the batch not visible yet, or the
//!    rows have changed. A later run looks again.

use std::collections::HashSet;

use anyhow::Context as _;

use crate::dify::conversion::Conversion;
use crate::ledger::Ledger;
use crate::ledger::batch::OpenBatch;
use crate::pipeline::assemble::Assembler;
use crate::pipeline::deliver::{Courier, Delivery, Intended};
use crate::pipeline::follow::Follower;
use crate::pipeline::pace::Pace;
use crate::pipeline::progress::Progress;
use crate::pipeline::stop::Stop;
use crate::record::timestamp::Timestamp;
use crate::sls::client::Client;
use crate::source::Source;

/// What a recovery did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Found in SLS.
    pub found: u64,
    /// Sent again.
    pub sent: u64,
    /// Still open.
    pub open: u64,
}

/// Settles what it can of the intents that dead processes left.
pub async fn recover(
    source: &Source,
    ledger: &Ledger,
    client: &Client,
    pace: &Pace,
    stop: &mut Stop,
) -> anyhow::Result<Recovered> {
    let orphans = ledger.orphaned_intents().await?;
    let mut tables: Vec<_> = orphans.iter().map(|batch| batch.table).collect();
    tables.sort_unstable();
    tables.dedup();
    for table in &tables {
        Follower::begin(client, ledger, *table).await?.catch_up(stop).await?;
    }
    let missing = ledger.orphaned_intents().await?;
    let mut recovered =
        Recovered { found: (orphans.len() - missing.len()) as u64, ..Recovered::default() };
    let mut is_silent = false;
    let mut lanes_open = HashSet::new();
    for batch in missing {
        // A later number on the wire would use up an earlier one that is still open.
        let is_blocked = lanes_open.contains(&batch.hash_key);
        let delivery = if is_silent || is_blocked || stop.is_asked() {
            Delivery::Unanswered
        } else {
            send_again(source, ledger, client, pace, &batch, stop).await.unwrap_or_else(|error| {
                tracing::warn!("batch {} stays open: {error:#}", batch.id);
                Delivery::NumberUsed
            })
        };
        is_silent |= delivery == Delivery::Unanswered && !is_blocked;
        if delivery == Delivery::Stored {
            recovered.sent += 1;
        } else {
            recovered.open += 1;
            lanes_open.insert(batch.hash_key);
        }
    }
    Ok(recovered)
}

async fn send_again(
    source: &Source,
    ledger: &Ledger,
    client: &Client,
    pace: &Pace,
    batch: &OpenBatch,
    stop: &mut Stop,
) -> anyhow::Result<Delivery> {
    let conversion: Conversion = serde_json::from_value(batch.conversion.clone())
        .context("read the batch's conversion from the ledger")?;
    let mut assembler = Assembler::new(conversion)?;
    // These rows were settled when the intent was made.
    let assembled =
        assembler.fill(source, &batch.row_ids, Timestamp::INFINITY, batch.ingest_time).await?;
    if assembled.digest != batch.digest || assembled.rows.len() != batch.row_ids.len() {
        tracing::warn!(
            "batch {} cannot be sent again: its rows have changed in Postgres meanwhile; it stays \
             open until SLS shows it",
            batch.id
        );
        return Ok(Delivery::NumberUsed);
    }
    let packed = assembler.pack(ledger.id, batch.id, &assembled);
    let signed_at = client.now();
    if !ledger.signed_anew(batch.id, signed_at).await? {
        return Ok(Delivery::Stored);
    }
    let progress = Progress::new(batch.table, 0);
    let courier = Courier { client, ledger, progress: &progress, pace };
    let intended = Intended {
        batch_id: batch.id,
        logstore: batch.table.logstore(),
        hash_key: &batch.hash_key,
        number: batch.number,
        signed_at,
        packed: &packed,
    };
    courier.deliver(&intended, stop).await
}
