//! Finds out which rows of a batch differ: its logs are pulled again one by one, and compared by id
//! with the ledger and with Postgres.

use std::collections::{BTreeMap, HashSet};

use uuid::Uuid;

use crate::ledger::finding::Finding;
use crate::ledger::verified_batches::BatchToCompare;
use crate::pipeline::verify::content::compare::{
    Comparer, SOURCE_CHANGED, SOURCE_DIFFERS, SOURCE_GONE,
};
use crate::pipeline::verify::content::refetch::{Refetched, Stretch, refetch};
use crate::pipeline::verify::content::shard_reader::ReaderParts;
use crate::pipeline::verify::content::verdict::Verdict;
use crate::record::digest::Digest;
use crate::sls::tag_sums::BatchName;

/// So many batches are explained; each is pulled and read again.
const EXPLAINED_MAX: u32 = 100;

/// Findings read from the ledger at once.
const PAGE_FINDINGS: u32 = 100;

/// Which rows of a batch SLS lacks, has more than once, or has although they are none of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct ById {
    missing: Vec<Uuid>,
    doubled: Vec<Uuid>,
    strange: Vec<Uuid>,
}

/// Explains the first findings of a verification.
pub async fn explain(reader: &ReaderParts, comparer: &Comparer) -> anyhow::Result<()> {
    let (ledger, verification) = (&reader.ledger, &reader.verification);
    let kinds =
        [Verdict::Missing.name(), Verdict::Doubled.name(), Verdict::Changed.name(), SOURCE_DIFFERS];
    let (mut after, mut explained) = (0, 0);
    loop {
        let findings = ledger.findings_of(verification.id, &kinds, after, PAGE_FINDINGS).await?;
        let Some((last, _)) = findings.last() else { return Ok(()) };
        after = *last;
        for (number, finding) in findings {
            let Some(batch_id) = finding.batch_id else { continue };
            let is_source = finding.kind == SOURCE_DIFFERS;
            let has_logs = is_source || finding.found > 0;
            if !has_logs {
                continue;
            }
            let batch = match explained < EXPLAINED_MAX {
                true => ledger.batch_to_compare_of(batch_id).await?,
                false => None,
            };
            explained += 1;
            let refetched = match &batch {
                Some(batch) => Some(pull(reader, batch).await?),
                None => None,
            };
            match (is_source, batch.zip(refetched)) {
                (true, Some((batch, refetched))) => {
                    let findings = of_source(comparer, &batch, &refetched, &finding).await?;
                    ledger.replace_finding(verification, number, &findings).await?;
                }
                (true, None) => {
                    let findings = unexplained(&finding);
                    ledger.replace_finding(verification, number, &findings).await?;
                }
                (false, Some((batch, refetched))) => {
                    let (rows, detail) = of_sls(comparer, &batch, &refetched, &finding).await?;
                    ledger.explain_finding(number, &rows, &detail).await?;
                }
                (false, None) => {}
            }
        }
    }
}

/// The logs of a batch, from where this verification, or the last proof, has found them.
async fn pull(reader: &ReaderParts, batch: &BatchToCompare) -> anyhow::Result<Refetched> {
    let (ledger, verification) = (&reader.ledger, &reader.verification);
    let name = BatchName { ledger_id: batch.ledger_id, batch_id: batch.id };
    let mut found = ledger.found_of(verification.id, &[batch.id]).await?;
    let found = found.remove(&(name.ledger_id, name.batch_id)).unwrap_or_default();
    let mut stretches: Vec<_> = found
        .into_iter()
        .map(|found| Stretch {
            shard: found.shard,
            cursor: found.first_cursor,
            end_cursor: Some(found.end_cursor),
        })
        .collect();
    if stretches.is_empty() {
        let spans = ledger.proof_spans(batch.id).await?;
        let stretch =
            |(shard, cursor, end_cursor)| Stretch { shard, cursor, end_cursor: Some(end_cursor) };
        stretches = spans.into_iter().map(stretch).collect();
    }
    let logstore = verification.table.logstore();
    refetch(&reader.client, (&ledger.seal, logstore), (name, batch.wanted.rows), &stretches).await
}

/// Which rows a finding about SLS is about, and in words.
async fn of_sls(
    comparer: &Comparer,
    batch: &BatchToCompare,
    refetched: &Refetched,
    finding: &Finding,
) -> anyhow::Result<(Vec<Uuid>, String)> {
    let logs = refetched.by_id();
    let ById { missing, doubled, strange } = by_id(&batch.row_ids, &logs);
    let mut told = Vec::new();
    let mut rows = Vec::new();
    if finding.kind == Verdict::Doubled.name() {
        let attempts: Vec<_> = refetched
            .attempts()
            .into_iter()
            .map(|(attempt, logs)| format!("{logs} of sending {attempt}"))
            .collect();
        told.push(format!("{} rows more than once: {}", doubled.len(), attempts.join(", ")));
        rows.extend(doubled);
    }
    if !missing.is_empty() {
        told.push(format!("{} rows are missing", missing.len()));
        rows.extend(missing);
    }
    if !strange.is_empty() {
        told.push(format!("{} logs are of rows that are none of it", strange.len()));
        rows.extend(strange);
    }
    if finding.kind == Verdict::Changed.name() {
        let once: BTreeMap<_, _> = logs
            .iter()
            .filter(|(id, digests)| digests.len() == 1 && batch.row_ids.contains(id))
            .map(|(id, digests)| (*id, digests[0]))
            .collect();
        let changed = changed_rows(comparer, batch, &once).await?;
        told.push(match &changed {
            Some(changed) => {
                format!("{} logs are not what Postgres's rows would give", changed.len())
            }
            None => "it cannot be made again from Postgres".to_owned(),
        });
        rows.extend(changed.unwrap_or_default());
    }
    if !refetched.is_whole {
        told.push("its logs lie too far apart to be looked at one by one".to_owned());
    }
    let before = Some(finding.detail.as_str()).filter(|detail| !detail.is_empty());
    let told = before.into_iter().map(str::to_owned).chain(told).collect::<Vec<_>>();
    Ok((rows, told.join("; ")))
}

/// What has become of a batch's rows in Postgres, given its logs in SLS.
async fn of_source(
    comparer: &Comparer,
    batch: &BatchToCompare,
    refetched: &Refetched,
    finding: &Finding,
) -> anyhow::Result<Vec<Finding>> {
    let sum = refetched.sum();
    if (sum.rows, sum.digest) != (batch.wanted.rows, batch.wanted.digest) {
        // SLS cannot tell what the rows were.
        return Ok(unexplained(finding));
    }
    let left: HashSet<_> = batch.left.iter().chain(&finding.row_ids).collect();
    let truth: BTreeMap<_, _> = refetched
        .by_id()
        .into_iter()
        .filter(|(id, _)| !left.contains(id))
        .filter_map(|(id, digests)| Some((id, *digests.first()?)))
        .collect();
    let mut findings = gone(finding);
    let changed = changed_rows(comparer, batch, &truth).await?.unwrap_or_default();
    if !changed.is_empty() {
        findings.push(Finding {
            kind: SOURCE_CHANGED.to_owned(),
            rows: changed.len() as u64,
            row_ids: changed,
            ..finding.clone()
        });
    }
    Ok(findings)
}

/// What is certain of a difference between a batch and Postgres without its logs.
fn unexplained(finding: &Finding) -> Vec<Finding> {
    let findings = gone(finding);
    if !findings.is_empty() {
        return findings;
    }
    vec![Finding {
        kind: SOURCE_CHANGED.to_owned(),
        detail: "nobody has looked which of its rows".to_owned(),
        row_ids: Vec::new(),
        ..finding.clone()
    }]
}

fn gone(finding: &Finding) -> Vec<Finding> {
    let rows = finding.row_ids.len() as u64;
    let gone = Finding { kind: SOURCE_GONE.to_owned(), rows, ..finding.clone() };
    (rows > 0).then_some(gone).into_iter().collect()
}

/// Compares ids.
fn by_id(row_ids: &[Uuid], logs: &BTreeMap<Uuid, Vec<Digest>>) -> ById {
    let own: HashSet<_> = row_ids.iter().collect();
    ById {
        missing: row_ids.iter().filter(|id| !logs.contains_key(id)).copied().collect(),
        doubled: logs.iter().filter(|(_, logs)| logs.len() > 1).map(|(id, _)| *id).collect(),
        strange: logs.keys().filter(|id| !own.contains(id)).copied().collect(),
    }
}

/// Those rows whose log is not what Postgres gives now, by halving; `None` where the batch cannot be
/// made again. Rows that are gone are not among them.
async fn changed_rows(
    comparer: &Comparer,
    batch: &BatchToCompare,
    truth: &BTreeMap<Uuid, Digest>,
) -> anyhow::Result<Option<Vec<Uuid>>> {
    let ids: Vec<_> = truth.keys().copied().collect();
    let (mut changed, mut waiting) = (Vec::new(), vec![ids.as_slice()]);
    while let Some(part) = waiting.pop() {
        if part.is_empty() {
            continue;
        }
        let Ok(assembled) = comparer.assemble(batch, part).await? else { return Ok(None) };
        let mut sum = Digest::ZERO;
        part.iter().for_each(|id| sum.add(truth[id]));
        if assembled.rows.len() == part.len() && assembled.digest == sum {
            continue;
        }
        match part {
            [_] if !assembled.missing().is_empty() => {}
            [id] => changed.push(*id),
            _ => {
                let (first, second) = part.split_at(part.len() / 2);
                waiting.extend([second, first]);
            }
        }
    }
    Ok(Some(changed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    #[test]
    fn rows_are_compared_by_id() {
        let digest = |byte: u8| Digest::from_bytes([byte; 32]);
        let logs = BTreeMap::from([
            (id(1), vec![digest(1)]),
            (id(2), vec![digest(2), digest(2)]),
            (id(9), vec![digest(9)]),
        ]);
        let compared = by_id(&[id(1), id(2), id(3)], &logs);
        assert_eq!(
            compared,
            ById { missing: vec![id(3)], doubled: vec![id(2)], strange: vec![id(9)] }
        );
    }

    #[test]
    fn what_nobody_has_looked_at_is_gone_or_changed() {
        let finding = Finding { rows: 5, row_ids: vec![id(1)], ..Finding::default() };
        let gone = unexplained(&finding);
        assert_eq!((gone.len(), gone[0].kind.as_str(), gone[0].rows), (1, SOURCE_GONE, 1));
        let changed = unexplained(&Finding { row_ids: Vec::new(), ..finding });
        assert_eq!((changed[0].kind.as_str(), changed[0].rows), (SOURCE_CHANGED, 5));
    }
}
