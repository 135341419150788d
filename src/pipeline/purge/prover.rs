//! Proves the next batches while rows of those before are deleted.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::purge::ProvedBatch;
use crate::pipeline::purge::comparison::{Comparing, Comparison, NotComparable};
use crate::pipeline::purge::keeping::Keeping;
use crate::pipeline::verify::fresh_proof::neighbours::pull_together;
use crate::pipeline::verify::fresh_proof::{FreshProof, NotProved, pull};
use crate::record::day::Day;
use crate::sls::client::Client;

/// Batches looked up, and proved, together. They are of 2 MiB mostly.
const BATCHES_A_PAGE: u32 = 16;

/// Batches that are proved and wait for the deleter; as many again may be on their way. Of each,
/// 48 bytes a row are in memory.
const BATCHES_AHEAD: usize = 16;

/// What is needed to prove batches.
#[derive(Clone)]
pub struct Prover {
    pub ledger: Ledger,
    pub client: Client,
    pub keeping: Keeping,
    /// The days on which SLS's search finds every row once.
    pub equal_days: BTreeSet<Day>,
    /// How old a proof may be when a row goes by it.
    pub fresh_for: Duration,
    pub comparing: Comparing,
}

/// A batch whose rows may be deleted, as long as its proof is fresh.
pub struct Proved {
    pub batch: ProvedBatch,
    pub proof: FreshProof,
    pub comparison: Comparison,
    /// Where those of its rows are that are not known to have left.
    pub places: Vec<usize>,
}

/// What there is to say of a batch.
pub enum Candidate {
    Proved(Box<Proved>),
    /// SLS does not keep it long enough.
    NotKept,
    /// SLS's search does not find every row of its days once.
    NotFound,
    NotComparable(Uuid, NotComparable),
    NotProved(Uuid, NotProved),
}

/// Batches as they are proved.
pub struct Candidates {
    from: mpsc::Receiver<Candidate>,
    proving: JoinHandle<anyhow::Result<()>>,
}

impl Prover {
    /// Begins to prove all batches of the window.
    pub fn start(self) -> Candidates {
        let (to, from) = mpsc::channel(BATCHES_AHEAD);
        Candidates { from, proving: tokio::spawn(async move { self.all(&to).await }) }
    }

    /// Proves a batch anew, whose proof has become too old.
    pub async fn renew(
        &self,
        batch: &ProvedBatch,
    ) -> anyhow::Result<Result<FreshProof, NotProved>> {
        pull(&self.client, &self.ledger.seal, batch, self.fresh_for, |_| ()).await
    }

    async fn all(&self, to: &mpsc::Sender<Candidate>) -> anyhow::Result<()> {
        let mut after = Uuid::nil();
        loop {
            let window = &self.comparing.window;
            let page = self.ledger.proved_batches(window, after, BATCHES_A_PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.id;
            for candidate in self.page(page).await? {
                if to.send(candidate).await.is_err() {
                    // Somebody has asked to stop.
                    return Ok(());
                }
            }
        }
    }

    /// Proves those of a page's batches that may go.
    async fn page(&self, page: Vec<ProvedBatch>) -> anyhow::Result<Vec<Candidate>> {
        let mut candidates = Vec::new();
        let (mut batches, mut comparisons) = (Vec::new(), Vec::new());
        for batch in page {
            if !self.keeping.keeps(batch.finished_first, batch.received_first) {
                candidates.push(Candidate::NotKept);
            } else if !batch.days.iter().all(|day| self.equal_days.contains(day)) {
                candidates.push(Candidate::NotFound);
            } else if !places(&batch).is_empty() {
                match self.comparing.comparison(&batch) {
                    Ok(comparison) => {
                        batches.push(batch);
                        comparisons.push(comparison);
                    }
                    Err(why) => candidates.push(Candidate::NotComparable(batch.id, why)),
                }
            }
        }
        let seal = &self.ledger.seal;
        let proofs = pull_together(&self.client, seal, &batches, self.fresh_for).await?;
        for ((batch, comparison), proof) in batches.into_iter().zip(comparisons).zip(proofs) {
            candidates.push(match proof {
                Ok(proof) => {
                    let places = places(&batch);
                    Candidate::Proved(Box::new(Proved { batch, proof, comparison, places }))
                }
                Err(why) => Candidate::NotProved(batch.id, why),
            });
        }
        Ok(candidates)
    }
}

impl Candidates {
    /// The next one; `None` after the last.
    pub async fn next(&mut self) -> anyhow::Result<Option<Candidate>> {
        match self.from.recv().await {
            Some(candidate) => Ok(Some(candidate)),
            None => {
                (&mut self.proving).await.context("prove batches")??;
                Ok(None)
            }
        }
    }
}

impl Drop for Candidates {
    fn drop(&mut self) {
        self.proving.abort();
    }
}

/// Where those rows of a batch are that are not known to have left.
fn places(batch: &ProvedBatch) -> Vec<usize> {
    let marks = &batch.marks;
    let is_done = |place: &usize| {
        // What was marked and perhaps not deleted is looked at again.
        (marks.purged.contains(*place) && !batch.is_purging)
            || marks.gone.contains(*place)
            || batch.revised.contains(*place)
    };
    (0..batch.row_ids.len()).filter(|place| !is_done(place)).collect()
}
