//! Judges batches by what was found of them, and writes down proofs and findings.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::finding::{Finding, Proved};
use crate::ledger::verification::{FoundIn, Verification, total};
use crate::ledger::verified_batches::BatchToJudge;
use crate::pipeline::verify::content::verdict::{BatchFacts, Judged, Look, Verdict, copies, judge};
use crate::record::digest::Sum;
use crate::sls::tag_sums::NOT_SEALED;

/// Batches that are judged at once.
const PAGE_BATCHES: u32 = 1000;

/// How many batches got a verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerdictTally {
    pub batches: u64,
    /// Rows that SLS should hold of them.
    pub rows: u64,
    /// Logs that it holds.
    pub found: u64,
    /// Batches among them whose verdict a late request could still change.
    pub provisional: u64,
}

/// What is judged, and with what.
pub struct Judge<'a> {
    pub ledger: &'a Ledger,
    pub verification: &'a Verification,
    pub look: Look,
    pub verdicts: BTreeMap<Verdict, VerdictTally>,
}

impl Judge<'_> {
    /// Judges all batches of the scope.
    pub async fn all(&mut self) -> anyhow::Result<()> {
        let mut after = Uuid::nil();
        loop {
            let (ledger, verification) = (self.ledger, self.verification);
            let batches = ledger.batches_to_judge(verification, after, PAGE_BATCHES).await?;
            let Some(last) = batches.last() else { break };
            after = last.id;
            self.page(&batches).await?;
        }
        self.foreign().await
    }

    async fn page(&mut self, batches: &[BatchToJudge]) -> anyhow::Result<()> {
        let ids: Vec<_> = batches.iter().map(|batch| batch.id).collect();
        let mut found = self.ledger.found_of(self.verification.id, &ids).await?;
        let (mut proved, mut findings) = (Vec::new(), Vec::new());
        for batch in batches {
            let found = found.remove(&(batch.ledger_id, batch.id)).unwrap_or_default();
            let sum = total(&found);
            let facts = BatchFacts {
                standing: batch.standing,
                is_noted: batch.is_noted,
                wanted: batch.wanted,
                has_digest: batch.has_digest,
                signed_at: batch.signed_at,
                received_by: batch.received_by,
            };
            let judged = judge(&facts, &sum, &self.look);
            let tally = self.verdicts.entry(judged.verdict).or_default();
            tally.batches += 1;
            tally.rows += batch.wanted.rows;
            tally.found += sum.rows;
            tally.provisional += u64::from(judged.is_provisional);
            match judged.verdict {
                Verdict::Proved => proved.push(Proved { batch_id: batch.id, found }),
                Verdict::Absent | Verdict::Open => {}
                _ => findings.push(finding(batch, &sum, judged, &found)),
            }
        }
        self.ledger.judged(self.verification, &proved, &findings).await
    }

    async fn foreign(&mut self) -> anyhow::Result<()> {
        let mut after = (Uuid::nil(), Uuid::nil());
        loop {
            let (ledger, verification) = (self.ledger, self.verification);
            let foreign = ledger.foreign_found(verification, after, PAGE_BATCHES).await?;
            let Some((ledger_id, batch_id, _)) = foreign.last() else { return Ok(()) };
            after = (*ledger_id, *batch_id);
            let mut findings = Vec::new();
            for (ledger_id, batch_id, found) in foreign {
                let tally = self.verdicts.entry(Verdict::Foreign).or_default();
                tally.batches += 1;
                tally.found += found;
                let detail = match ledger_id {
                    NOT_SEALED => "somebody else has written it under this ledger's name",
                    id if id == ledger.id => "this ledger has no such batch in this logstore",
                    _ => "another ledger has sent it",
                };
                findings.push(Finding {
                    kind: Verdict::Foreign.name().to_owned(),
                    batch_id: Some(batch_id),
                    ledger_id: Some(ledger_id),
                    found,
                    detail: detail.to_owned(),
                    ..Finding::default()
                });
            }
            ledger.found_out(verification, &findings).await?;
        }
    }
}

fn finding(batch: &BatchToJudge, found: &Sum, judged: Judged, places: &[FoundIn]) -> Finding {
    let wanted = &batch.wanted;
    let mut shards: Vec<_> = places.iter().map(|place| place.shard.to_string()).collect();
    shards.dedup();
    let detail = match (judged.verdict, copies(wanted, found)) {
        (Verdict::Doubled, Some(copies)) => {
            format!("{copies} whole copies, in shard {}", shards.join(", "))
        }
        (Verdict::Doubled, None) => "not in whole copies".to_owned(),
        _ => String::new(),
    };
    Finding {
        kind: judged.verdict.name().to_owned(),
        batch_id: Some(batch.id),
        ledger_id: Some(batch.ledger_id),
        rows: if judged.verdict == Verdict::GivenUp { 0 } else { wanted.rows },
        found: found.rows,
        is_provisional: judged.is_provisional,
        attempts: Some(batch.attempts),
        detail,
        ..Finding::default()
    }
}
