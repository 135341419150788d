//! What was found in SLS: read positions, sightings, and which batches they prove.
//!
//! A position moves in the transaction that adds what was found before it, and only from where it
//! stood. So however many processes read a shard, every log group is summed up once.
//!
//! A page that shows a batch whose fate is open, or one that was given up, is on disk before anybody
//! sees it in the book: that nothing of a batch was found must not be concluded from what a crash can
//! take back. Any other page
//! may be lost, and is read again.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::ledger::audit_conclusion::revive_if_alone;
use crate::ledger::generation::note_other_writer;
use crate::ledger::stop::{Stopped, write_stop};
use crate::ledger::{Ledger, make_durable};
use crate::pg::{self, Tx};
use crate::record::digest::{Digest, Sum};
use crate::record::table::Table;

/// A page of a shard, summed up.
#[derive(Debug, Clone)]
pub struct Page<'a> {
    pub table: Table,
    /// Which creation of the logstore was read.
    pub generation: i32,
    pub shard: u32,
    /// Where the page begins: the position as it stands.
    pub cursor: &'a str,
    pub next_cursor: &'a str,
    pub sums: &'a BTreeMap<Uuid, Sum>,
    /// The oldest log time (Unix s) of another writer in it.
    pub others_since: Option<u32>,
}

/// A batch that SLS does not hold as the ledger says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DifferingBatch {
    pub batch_id: Uuid,
    /// Rows that SLS should hold.
    pub rows: u64,
    /// Rows that were found.
    pub found: u64,
    /// How long before the comparison (s) it was known what became of it; `None`: it is not yet.
    pub settled_ago_s: Option<i64>,
}

/// A moment on the ledger's clock, in microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(i64);

/// What came of adding a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddedPage {
    /// Another process has added it.
    Before,
    /// It is added. `revived`: batches that were given up and are there after all.
    Now { revived: Vec<Uuid> },
}

/// Batches of one lane that SLS has acknowledged, and that were not found whole yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unseen {
    pub hash_key: String,
    /// The shards that owned the key when they were sent.
    pub shards: BTreeSet<u32>,
    /// When the first of them was acknowledged.
    pub acknowledged_at: Moment,
}

/// What a comparison of the book with SLS gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    pub batches_equal: u64,
    pub rows_equal: u64,
    pub differences: Vec<DifferingBatch>,
}

impl Ledger {
    /// Where each shard of that creation of the logstore is to be read on.
    pub async fn read_positions(
        &self,
        logstore: &str,
        generation: i32,
    ) -> anyhow::Result<BTreeMap<u32, String>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::statement(
            "SELECT shard, cursor FROM sls_backfill.read_position \
             WHERE logstore = $1 AND generation = $2",
        )
        .bind(logstore)
        .bind(generation)
        .fetch_all(&mut *tx)
        .await
        .with_context(|| format!("look up where to read {logstore}"))?;
        rows.iter()
            .map(|row| {
                Ok((u32::try_from(row.try_get::<i32, _>("shard")?)?, row.try_get("cursor")?))
            })
            .collect()
    }

    /// Begins to read a logstore at these cursors, one a shard, unless it is being read already.
    /// All or nothing, one process after the other: whoever finds a position finds all of them,
    /// and each is older than anything that was sent since. Fails with [`Stopped`] while an audit
    /// reads, which begins elsewhere.
    pub async fn begin_reading_all(
        &self,
        logstore: &str,
        generation: i32,
        cursors: &[(u32, String)],
    ) -> anyhow::Result<()> {
        let context = || format!("note where to read {logstore}");
        let mut tx = self.begin().await?;
        let row = pg::statement("SELECT stopped_because FROM sls_backfill.ledger FOR UPDATE")
            .fetch_one(&mut *tx)
            .await
            .with_context(context)?;
        if let Some(because) = row.try_get("stopped_because")? {
            return Err(Stopped { because }.into());
        }
        let shards = cursors.iter().map(|(shard, _)| i32::try_from(*shard));
        pg::statement(
            "INSERT INTO sls_backfill.read_position (logstore, generation, shard, cursor) \
             SELECT $1, $2, c.shard, c.cursor \
             FROM unnest($3::int[], $4::text[]) AS c(shard, cursor) WHERE NOT EXISTS \
               (SELECT FROM sls_backfill.read_position WHERE logstore = $1 AND generation = $2)",
        )
        .bind(logstore)
        .bind(generation)
        .bind(shards.collect::<Result<Vec<_>, _>>()?)
        .bind(cursors.iter().map(|(_, cursor)| cursor.clone()).collect::<Vec<_>>())
        .execute(&mut *tx)
        .await
        .with_context(context)?;
        tx.commit().await.with_context(context)
    }

    /// Begins to read a shard at `cursor`, unless it is being read already.
    pub async fn begin_reading(
        &self,
        logstore: &str,
        generation: i32,
        shard: u32,
        cursor: &str,
    ) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        pg::statement(
            "INSERT INTO sls_backfill.read_position (logstore, generation, shard, cursor) \
             VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        )
        .bind(logstore)
        .bind(generation)
        .bind(i32::try_from(shard)?)
        .bind(cursor)
        .execute(&mut *tx)
        .await
        .with_context(|| format!("note where to read shard {shard} of {logstore}"))?;
        tx.commit().await.context("note where to read")
    }

    /// Adds a page and moves the shard's position behind it; marks batches that are now whole as
    /// proved; takes back those that were given up, unless others have their rows. Fails with
    /// [`Stopped`] when an audit reads by itself, and when the page shows a batch of this ledger that
    /// the book lacks, which stops it.
    pub async fn add_page(&self, page: &Page<'_>) -> anyhow::Result<AddedPage> {
        let mut tx = self.begin_relaxed().await?;
        let moved = pg::statement(
            "UPDATE sls_backfill.read_position SET cursor = $4, updated_at = clock_timestamp() \
             WHERE logstore = $1 AND shard = $2 AND cursor = $3 AND generation = $5 \
             AND NOT EXISTS (SELECT FROM sls_backfill.ledger WHERE audit IS NOT NULL)",
        )
        .bind(page.table.logstore())
        .bind(i32::try_from(page.shard)?)
        .bind(page.cursor)
        .bind(page.next_cursor)
        .bind(page.generation)
        .execute(&mut *tx)
        .await
        .with_context(|| format!("note what shard {} of {} shows", page.shard, page.table))?;
        if moved.rows_affected() != 1 {
            let audited = pg::statement(
                "SELECT stopped_because FROM sls_backfill.ledger \
                 WHERE audit IS NOT NULL AND stopped_because IS NOT NULL",
            )
            .fetch_optional(&mut *tx)
            .await
            .context("look whether an audit reads")?;
            return match audited {
                Some(row) => Err(Stopped { because: row.try_get("stopped_because")? }.into()),
                None => Ok(AddedPage::Before),
            };
        }
        let context = "note what was found in SLS";
        if let Some(since) = page.others_since {
            note_other_writer(&mut tx, page.table.logstore(), page.generation, since).await?;
        }
        let mut revived = Vec::new();
        let ids: Vec<Uuid> = page.sums.keys().copied().collect();
        let states = states(&mut tx, ids.clone()).await.context(context)?;
        add_sightings(&mut tx, page).await.context(context)?;
        for (batch_id, state) in &states {
            if matches!(state.as_str(), "split" | "abandoned")
                && revive_if_alone(&mut tx, page.table, *batch_id, None).await?
            {
                revived.push(*batch_id);
            }
        }
        let stopped = stop_for_lacking(&mut tx, &ids, &states).await?;
        let is_open = states.values().any(|state| state == "intent");
        if stopped.is_some() || is_open || !revived.is_empty() {
            make_durable(&mut tx).await.context(context)?;
        }
        prove(&mut tx, ids).await.context("prove batches")?;
        tx.commit().await.context(context)?;
        match stopped {
            Some(stopped) => Err(stopped.into()),
            None => Ok(AddedPage::Now { revived }),
        }
    }

    /// Marks those of `ids` that were found whole and once.
    pub async fn prove(&self, ids: Vec<Uuid>) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        prove(&mut tx, ids).await.context("prove batches")?;
        tx.commit().await.context("prove batches")
    }

    /// The batches of `table`, but for those of `but_for`, that SLS has acknowledged and that were
    /// not found whole yet; by lane. A shard shows its groups in order: what is not there although
    /// its shard shows a batch that was sent later is lost, and tells nothing of the readers.
    pub async fn unseen(&self, table: Table, but_for: &[Uuid]) -> anyhow::Result<Vec<Unseen>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::statement(
            "WITH unseen AS MATERIALIZED (SELECT l.hash_key, b.stored_at, c.shards \
               FROM sls_backfill.batch b JOIN sls_backfill.lane l ON l.id = b.lane_id, \
               LATERAL (SELECT array_agg(shard::int ORDER BY shard::int) AS shards \
                 FROM jsonb_object_keys(b.cursors) AS shard) AS c \
               WHERE b.table_name = $1 AND b.state = 'stored' AND b.id <> ALL($2) \
               AND b.rows > (SELECT coalesce(sum(s.rows), 0) FROM sls_backfill.sighting s \
                 WHERE s.batch_id = b.id AND s.generation = b.generation)), \
             latest AS MATERIALIZED (SELECT shards, (SELECT b.intended_at \
                 FROM sls_backfill.sighting s JOIN sls_backfill.batch b ON b.id = s.batch_id \
                 WHERE s.logstore = $3 AND ARRAY[s.shard] = u.shards \
                 ORDER BY s.batch_id DESC LIMIT 1) AS intended_at \
               FROM (SELECT DISTINCT shards FROM unseen) u) \
             SELECT hash_key, u.shards, \
             (extract(epoch FROM min(stored_at)) * 1000000)::int8 AS acknowledged_at \
             FROM unseen u LEFT JOIN latest USING (shards) \
             WHERE intended_at IS NULL OR intended_at <= stored_at GROUP BY hash_key, u.shards",
        )
        .bind(table.name())
        .bind(but_for.to_vec())
        .bind(table.logstore())
        .fetch_all(&mut *tx)
        .await
        .with_context(|| format!("look for batches of {table} that SLS does not give back yet"))?;
        rows.iter()
            .map(|row| {
                let shards: Option<Vec<i32>> = row.try_get("shards")?;
                let shards = shards.unwrap_or_default().into_iter().map(u32::try_from);
                Ok(Unseen {
                    hash_key: row.try_get("hash_key")?,
                    shards: shards.collect::<Result<_, _>>()?,
                    acknowledged_at: Moment(row.try_get("acknowledged_at")?),
                })
            })
            .collect()
    }

    /// The ledger's clock.
    pub async fn moment(&self) -> anyhow::Result<Moment> {
        Ok(Moment(self.now_us().await?))
    }

    /// Compares the batches of `table` that were known to be stored at `moment` with what was found
    /// of them. Of the others only such count as different that were found more than once.
    pub async fn compare(&self, table: Table, moment: Moment) -> anyhow::Result<Comparison> {
        let mut comparison = Comparison::default();
        let mut after = Uuid::nil();
        loop {
            let mut tx = self.begin_relaxed().await?;
            let ids: Vec<Uuid> = pg::statement(
                "SELECT id FROM sls_backfill.batch WHERE table_name = $1 AND id > $2 \
                 ORDER BY id LIMIT 5000",
            )
            .bind(table.name())
            .bind(after)
            .fetch_all(&mut *tx)
            .await
            .context("compare the book with SLS")?
            .iter()
            .map(|row| row.try_get("id"))
            .collect::<Result<_, _>>()?;
            let Some(last) = ids.last() else { return Ok(comparison) };
            after = *last;
            for verdict in verdicts(&mut tx, ids).await.context("compare the book with SLS")? {
                // What went into a logstore that is gone is neither here nor expected.
                if verdict.is_past && verdict.found.rows == 0 || verdict.wanted.is_none() {
                    continue;
                }
                let wanted = verdict.wanted.map_or(0, |wanted| wanted.rows);
                let is_settled = verdict.settled_at.is_some_and(|settled| settled <= moment.0);
                let is_too_many = verdict.found.rows > wanted;
                if verdict.equal && verdict.found.rows > 0 {
                    comparison.batches_equal += 1;
                    comparison.rows_equal += verdict.found.rows;
                } else if !verdict.equal && (is_settled || is_too_many) {
                    comparison.differences.push(DifferingBatch {
                        batch_id: verdict.batch_id,
                        rows: wanted,
                        found: verdict.found.rows,
                        settled_ago_s: verdict
                            .settled_at
                            .map(|settled| (moment.0 - settled) / 1_000_000),
                    });
                }
            }
        }
    }
}

/// The states of those of `ids` that the book has. They stay as they are until the transaction ends:
/// who gives one of them up meanwhile waits, and then finds what this page shows.
async fn states(tx: &mut Tx, ids: Vec<Uuid>) -> anyhow::Result<BTreeMap<Uuid, String>> {
    let rows = pg::statement(
        "SELECT id, state FROM sls_backfill.batch WHERE id = ANY($1) ORDER BY id \
         FOR NO KEY UPDATE",
    )
    .bind(ids)
    .fetch_all(&mut **tx)
    .await?;
    rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("state")?))).collect()
}

/// Stops the ledger if it lacks one of `ids`, which bear its tag.
async fn stop_for_lacking(
    tx: &mut Tx,
    ids: &[Uuid],
    states: &BTreeMap<Uuid, String>,
) -> anyhow::Result<Option<Stopped>> {
    let Some(lacking) = ids.iter().find(|id| !states.contains_key(id)) else { return Ok(None) };
    let because = format!(
        "SLS holds batch {lacking} of this ledger, which the ledger lacks: a copy of it is at work, \
         or it went back in time"
    );
    write_stop(tx, &because).await?;
    Ok(Some(Stopped { because }))
}

async fn add_sightings(tx: &mut Tx, page: &Page<'_>) -> anyhow::Result<()> {
    let shard = i32::try_from(page.shard)?;
    for (batch_id, found) in page.sums {
        let row = pg::statement(
            "SELECT rows, digest, groups FROM sls_backfill.sighting WHERE batch_id = $1 \
             AND logstore = $2 AND shard = $3 AND generation = $4 FOR UPDATE",
        )
        .bind(batch_id)
        .bind(page.table.logstore())
        .bind(shard)
        .bind(page.generation)
        .fetch_optional(&mut **tx)
        .await?;
        let mut sum = *found;
        if let Some(row) = row {
            sum.add(&sum_of(&row)?);
        }
        pg::statement(
            "INSERT INTO sls_backfill.sighting \
             (batch_id, logstore, shard, rows, digest, groups, first_cursor, last_cursor, \
               generation) VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8) \
             ON CONFLICT (batch_id, logstore, generation, shard) \
             DO UPDATE SET rows = excluded.rows, digest = excluded.digest, \
             groups = excluded.groups, last_cursor = excluded.last_cursor, \
             seen_at = clock_timestamp()",
        )
        .bind(batch_id)
        .bind(page.table.logstore())
        .bind(shard)
        .bind(i64::try_from(sum.rows)?)
        .bind(sum.digest.to_bytes().to_vec())
        .bind(i32::try_from(sum.groups)?)
        .bind(page.cursor)
        .bind(page.generation)
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

pub(in crate::ledger) fn sum_of(row: &PgRow) -> anyhow::Result<Sum> {
    let digest: &[u8] = row.try_get("digest")?;
    Ok(Sum {
        rows: u64::try_from(row.try_get::<i64, _>("rows")?)?,
        digest: Digest::from_bytes(digest.try_into().context("a digest has 32 bytes")?),
        groups: u32::try_from(row.try_get::<i32, _>("groups")?)?,
    })
}

/// Marks those of `ids` that SLS holds whole and once. A batch that is doubled stays unproved, and
/// one that was proved and is there in another form than it was sent is proved no more.
pub(in crate::ledger) async fn prove(tx: &mut Tx, ids: Vec<Uuid>) -> anyhow::Result<()> {
    let verdicts = verdicts(tx, ids).await?;
    let (whole, others): (Vec<_>, Vec<_>) =
        verdicts.iter().partition(|verdict| verdict.equal && verdict.found.rows > 0);
    pg::statement(
        "UPDATE sls_backfill.batch b SET state = 'proved', proved_at = clock_timestamp(), \
         stored_at = coalesce(stored_at, clock_timestamp()), generation = \
           (SELECT max(g.number) FROM sls_backfill.generation g WHERE g.logstore = b.logstore) \
         WHERE id = ANY($1) AND state IN ('intent', 'stored', 'lost')",
    )
    .bind(whole.iter().map(|verdict| verdict.batch_id).collect::<Vec<_>>())
    .execute(&mut **tx)
    .await?;
    // Less than it has may be a part that an audit has read so far.
    let has_more =
        |verdict: &&Verdict| verdict.wanted.is_some_and(|wanted| verdict.found.rows >= wanted.rows);
    let changed = others.into_iter().filter(has_more).map(|verdict| verdict.batch_id);
    take_proof_back(tx, changed.collect()).await
}

/// Those of `ids` of which SLS does not hold what was sent are proved no more.
pub(in crate::ledger) async fn disprove(tx: &mut Tx, ids: Vec<Uuid>) -> anyhow::Result<()> {
    let verdicts = verdicts(tx, ids).await?;
    let unequal = verdicts.iter().filter(|verdict| !verdict.equal && !verdict.is_past);
    take_proof_back(tx, unequal.map(|verdict| verdict.batch_id).collect()).await
}

async fn take_proof_back(tx: &mut Tx, ids: Vec<Uuid>) -> anyhow::Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    pg::statement(
        "UPDATE sls_backfill.batch SET state = 'stored', proved_at = NULL \
         WHERE id = ANY($1) AND state = 'proved'",
    )
    .bind(ids)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

pub(in crate::ledger) struct Verdict {
    pub(in crate::ledger) batch_id: Uuid,
    /// What SLS should hold; `None`: nobody has told.
    wanted: Option<Sum>,
    found: Sum,
    pub(in crate::ledger) equal: bool,
    /// It is lost, or went into a logstore that is gone.
    is_past: bool,
    /// When it was known what became of it, in microseconds since 1970; `None`: not yet.
    settled_at: Option<i64>,
}

/// What was found of each of these batches in the logstore as it is now, over all shards.
pub(in crate::ledger) async fn found(
    tx: &mut Tx,
    ids: Vec<Uuid>,
) -> anyhow::Result<BTreeMap<Uuid, Sum>> {
    let mut found: BTreeMap<Uuid, Sum> = BTreeMap::new();
    let rows = pg::statement(
        "SELECT batch_id, rows, digest, groups FROM sls_backfill.sighting s \
         WHERE batch_id = ANY($1) AND generation = \
           (SELECT max(g.number) FROM sls_backfill.generation g WHERE g.logstore = s.logstore)",
    )
    .bind(ids)
    .fetch_all(&mut **tx)
    .await?;
    for row in &rows {
        found.entry(row.try_get("batch_id")?).or_default().add(&sum_of(row)?);
    }
    Ok(found)
}

/// What was found of each batch against what the book wants: a batch that is in SLS whole and once,
/// one that was given up not at all.
pub(in crate::ledger) async fn verdicts(
    tx: &mut Tx,
    ids: Vec<Uuid>,
) -> anyhow::Result<Vec<Verdict>> {
    let found = found(tx, ids.clone()).await?;
    let rows = pg::statement(
        "SELECT id, rows::int8 AS rows, digest, 1 AS groups, \
         state IN ('split', 'abandoned') AS given_up, state = 'lost' OR generation < \
           (SELECT max(g.number) FROM sls_backfill.generation g WHERE g.logstore = b.logstore) \
           AS past, \
         CASE WHEN state <> 'intent' THEN \
           (extract(epoch FROM coalesce(stored_at, intended_at)) * 1000000)::int8 END AS settled_at \
         FROM sls_backfill.batch b WHERE id = ANY($1)",
    )
    .bind(ids)
    .fetch_all(&mut **tx)
    .await?;
    rows.iter()
        .map(|row| {
            let batch_id = row.try_get("id")?;
            let is_given_up: bool = row.try_get("given_up")?;
            let is_told = row.try_get::<Option<&[u8]>, _>("digest")?.is_some();
            let wanted = match (is_given_up, is_told) {
                (true, _) => Some(Sum::default()),
                (false, true) => Some(sum_of(row)?),
                (false, false) => None,
            };
            let found = found.get(&batch_id).copied().unwrap_or_default();
            // A server may split a group in two, so the number of groups is not compared.
            let equal = wanted
                .is_some_and(|wanted| (found.rows, found.digest) == (wanted.rows, wanted.digest));
            let is_past = !is_given_up && row.try_get("past")?;
            let settled_at = row.try_get("settled_at")?;
            Ok(Verdict { batch_id, wanted, found, equal, is_past, settled_at })
        })
        .collect()
}
