//! What a verification found to be other than it should, and the proofs of what is as it should be.

use anyhow::Context as _;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::batch_rows::ids;
use crate::ledger::generation::current_sql;
use crate::ledger::verification::{FoundIn, Overtaken, Verification};
use crate::pg::{self, Tx};

/// Something that is not as it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finding {
    pub kind: String,
    pub batch_id: Option<Uuid>,
    /// The ledger that a foreign batch's tag names.
    pub ledger_id: Option<Uuid>,
    /// Rows that should be there; of a finding about Postgres, rows that it is about.
    pub rows: u64,
    /// Logs that are there.
    pub found: u64,
    /// The rows it is about, where they are known.
    pub row_ids: Vec<Uuid>,
    /// Whether a late request could still change it.
    pub is_provisional: bool,
    /// How often the batch had been signed when it was judged.
    pub attempts: Option<i32>,
    /// For a person; never content of a row.
    pub detail: String,
}

/// A batch that was found whole, and where.
#[derive(Debug, Clone)]
pub struct Proved {
    pub batch_id: Uuid,
    /// Not empty; in the order in which shards were read.
    pub found: Vec<FoundIn>,
}

impl Ledger {
    /// Writes down what was found about batches: proofs of those that are whole; findings about the
    /// others, whose older proofs hold no more.
    pub async fn judged(
        &self,
        verification: &Verification,
        proved: &[Proved],
        findings: &[Finding],
    ) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        let ids: Vec<Uuid> = proved.iter().map(|proved| proved.batch_id).collect();
        let doubtful = findings.iter().filter_map(|finding| finding.batch_id);
        pg::statement("DELETE FROM sls_backfill.proof WHERE batch_id = ANY($1)")
            .bind(ids.into_iter().chain(doubtful).collect::<Vec<_>>())
            .execute(&mut *tx)
            .await
            .context("forget older proofs")?;
        insert_proofs(&mut tx, verification, proved).await.context("write down proofs")?;
        for finding in findings {
            insert_finding(&mut tx, verification.id, finding)
                .await
                .context("write down findings")?;
        }
        tx.commit().await.context("write down what was found")
    }

    /// Writes down findings.
    pub async fn found_out(
        &self,
        verification: &Verification,
        findings: &[Finding],
    ) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        for finding in findings {
            insert_finding(&mut tx, verification.id, finding)
                .await
                .context("write down findings")?;
        }
        tx.commit().await.context("write down findings")
    }

    /// Puts `findings` in the place of all findings of these kinds.
    pub async fn renew_findings(
        &self,
        verification: &Verification,
        kinds: &[&str],
        findings: &[Finding],
    ) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        pg::statement(
            "DELETE FROM sls_backfill.verification_finding \
             WHERE verification_id = $1 AND kind = ANY($2)",
        )
        .bind(verification.id)
        .bind(kinds.iter().map(|kind| (*kind).to_owned()).collect::<Vec<_>>())
        .execute(&mut *tx)
        .await
        .context("forget findings")?;
        for finding in findings {
            insert_finding(&mut tx, verification.id, finding)
                .await
                .context("write down findings")?;
        }
        tx.commit().await.context("write down findings")
    }

    /// How many findings of each kind there are, with rows and logs found.
    pub async fn finding_counts(&self, id: i64) -> anyhow::Result<Vec<(String, u64, u64, u64)>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::statement(
            "SELECT kind, count(*) AS findings, sum(rows)::int8 AS rows, sum(found)::int8 AS found \
             FROM sls_backfill.verification_finding WHERE verification_id = $1 \
             GROUP BY kind ORDER BY kind",
        )
        .bind(id)
        .fetch_all(&mut *tx)
        .await
        .context("count findings")?;
        rows.iter()
            .map(|row| {
                let number = |name| Ok::<_, anyhow::Error>(row.try_get::<i64, _>(name)? as u64);
                Ok((row.try_get("kind")?, number("findings")?, number("rows")?, number("found")?))
            })
            .collect()
    }

    /// The next findings of these kinds behind number `after`, at most `limit`, with their numbers.
    pub async fn findings_of(
        &self,
        id: i64,
        kinds: &[&str],
        after: i64,
        limit: u32,
    ) -> anyhow::Result<Vec<(i64, Finding)>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::statement(
            "SELECT id, kind, batch_id, ledger_id, rows, found, row_ids, provisional, attempts, \
             detail FROM sls_backfill.verification_finding WHERE verification_id = $1 \
             AND kind = ANY($2) AND id > $3 ORDER BY id LIMIT $4",
        )
        .bind(id)
        .bind(kinds.iter().map(|kind| (*kind).to_owned()).collect::<Vec<_>>())
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await
        .context("list findings")?;
        rows.iter().map(|row| Ok((row.try_get("id")?, finding(row)?))).collect()
    }

    /// Puts other findings in the place of one; none: there was nothing to it.
    pub async fn replace_finding(
        &self,
        verification: &Verification,
        number: i64,
        findings: &[Finding],
    ) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        pg::statement("DELETE FROM sls_backfill.verification_finding WHERE id = $1")
            .bind(number)
            .execute(&mut *tx)
            .await
            .context("explain a finding")?;
        for finding in findings {
            insert_finding(&mut tx, verification.id, finding).await.context("explain a finding")?;
        }
        tx.commit().await.context("explain a finding")
    }

    /// Where a proof has found a batch: shard, first cursor, end cursor.
    pub async fn proof_spans(&self, batch_id: Uuid) -> anyhow::Result<Vec<(u32, String, String)>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::made_statement(&format!(
            "SELECT shard, first_cursor, end_cursor FROM sls_backfill.proof p \
             WHERE batch_id = $1 AND generation = {}",
            current_sql("p.logstore")
        ))
        .bind(batch_id)
        .fetch_all(&mut *tx)
        .await
        .context("look up a proof")?;
        rows.iter()
            .map(|row| {
                let shard = u32::try_from(row.try_get::<i32, _>("shard")?)?;
                Ok((shard, row.try_get("first_cursor")?, row.try_get("end_cursor")?))
            })
            .collect()
    }

    /// Adds to a finding which rows it is about, and what more there is to tell.
    pub async fn explain_finding(
        &self,
        number: i64,
        row_ids: &[Uuid],
        detail: &str,
    ) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        pg::statement(
            "UPDATE sls_backfill.verification_finding SET row_ids = $2, detail = $3 WHERE id = $1",
        )
        .bind(number)
        .bind(packed(row_ids))
        .bind(detail)
        .execute(&mut *tx)
        .await
        .context("explain a finding")?;
        tx.commit().await.context("explain a finding")
    }

    /// Notes that batches up to `after` were compared with Postgres, and what that gave.
    pub async fn note_compared(
        &self,
        verification: &Verification,
        after: Uuid,
        tally: &serde_json::Value,
        findings: &[Finding],
    ) -> anyhow::Result<()> {
        let mut tx = self.begin_relaxed().await?;
        for finding in findings {
            insert_finding(&mut tx, verification.id, finding)
                .await
                .context("write down findings")?;
        }
        let noted = pg::statement(
            "UPDATE sls_backfill.verification SET compared_after = $2, tally = $3 \
             WHERE id = $1 AND compared_after <= $2",
        )
        .bind(verification.id)
        .bind(after)
        .bind(tally)
        .execute(&mut *tx)
        .await
        .context("note what was compared")?;
        if noted.rows_affected() != 1 {
            return Err(Overtaken(verification.table).into());
        }
        tx.commit().await.context("note what was compared")
    }
}

async fn insert_proofs(
    tx: &mut Tx,
    verification: &Verification,
    proved: &[Proved],
) -> anyhow::Result<()> {
    struct Span<'a> {
        batch_id: Uuid,
        shard: u32,
        first: &'a FoundIn,
        last: &'a FoundIn,
        rows: i64,
        seen_at_us: i64,
    }
    let mut spans = Vec::new();
    for Proved { batch_id, found } in proved {
        let seen_at_us = found.iter().map(|found| found.seen_at_us).min().unwrap_or_default();
        let mut shards: Vec<u32> = found.iter().map(|found| found.shard).collect();
        shards.sort_unstable();
        shards.dedup();
        for shard in shards {
            let here: Vec<_> = found.iter().filter(|found| found.shard == shard).collect();
            if let (Some(first), Some(last)) = (here.first(), here.last()) {
                let rows: u64 = here.iter().map(|found| found.sum.rows).sum();
                let rows = i64::try_from(rows)?;
                spans.push(Span { batch_id: *batch_id, shard, first, last, rows, seen_at_us });
            }
        }
    }
    let shards = spans.iter().map(|span| span.shard.cast_signed());
    pg::statement(
        "INSERT INTO sls_backfill.proof (batch_id, logstore, shard, generation, first_cursor, \
         end_cursor, rows, received_first, received_last, proved_at) \
         SELECT p.batch_id, $1, p.shard, v.generation, p.first_cursor, p.end_cursor, p.rows, \
           to_timestamp(p.received_first), to_timestamp(p.received_last), \
           to_timestamp(p.seen_at_us / 1000000) \
         FROM (SELECT generation FROM sls_backfill.verification WHERE id = $10) v, \
           unnest($2::uuid[], $3::int4[], $4::text[], $5::text[], $6::int8[], $7::int8[], \
             $8::int8[], $9::float8[]) AS p(batch_id, shard, first_cursor, end_cursor, rows, \
           received_first, received_last, seen_at_us)",
    )
    .bind(verification.table.logstore())
    .bind(spans.iter().map(|span| span.batch_id).collect::<Vec<_>>())
    .bind(shards.collect::<Vec<_>>())
    .bind(spans.iter().map(|span| span.first.first_cursor.clone()).collect::<Vec<_>>())
    .bind(spans.iter().map(|span| span.last.end_cursor.clone()).collect::<Vec<_>>())
    .bind(spans.iter().map(|span| span.rows).collect::<Vec<_>>())
    .bind(spans.iter().map(|span| span.first.received.0).collect::<Vec<_>>())
    .bind(spans.iter().map(|span| span.last.received.1).collect::<Vec<_>>())
    .bind(spans.iter().map(|span| span.seen_at_us as f64).collect::<Vec<_>>())
    .bind(verification.id)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

pub(in crate::ledger) async fn insert_finding(
    tx: &mut Tx,
    id: i64,
    finding: &Finding,
) -> anyhow::Result<()> {
    pg::statement(
        "INSERT INTO sls_backfill.verification_finding (verification_id, kind, batch_id, \
         ledger_id, rows, found, row_ids, provisional, attempts, detail) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(id)
    .bind(&finding.kind)
    .bind(finding.batch_id)
    .bind(finding.ledger_id)
    .bind(i64::try_from(finding.rows)?)
    .bind(i64::try_from(finding.found)?)
    .bind((!finding.row_ids.is_empty()).then(|| packed(&finding.row_ids)))
    .bind(finding.is_provisional)
    .bind(finding.attempts)
    .bind(&finding.detail)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn finding(row: &PgRow) -> anyhow::Result<Finding> {
    let row_ids: Option<Vec<u8>> = row.try_get("row_ids")?;
    Ok(Finding {
        kind: row.try_get("kind")?,
        batch_id: row.try_get("batch_id")?,
        ledger_id: row.try_get("ledger_id")?,
        rows: u64::try_from(row.try_get::<i64, _>("rows")?)?,
        found: u64::try_from(row.try_get::<i64, _>("found")?)?,
        row_ids: row_ids.map(|row_ids| ids(&row_ids).collect()).unwrap_or_default(),
        is_provisional: row.try_get("provisional")?,
        attempts: row.try_get("attempts")?,
        detail: row.try_get("detail")?,
    })
}

fn packed(row_ids: &[Uuid]) -> Vec<u8> {
    row_ids.iter().flat_map(|id| *id.as_bytes()).collect()
}
