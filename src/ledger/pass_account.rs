//! What each pass has to the account of its table.
//!
//! A row belongs to the pass that saw it first, and stands where it is now. Where another pass has
//! sent, or ended, what this one had held, the row has moved: [`PassAccount::moved`] says how many
//! have, so that every pass adds up by itself; over all passes of a table they are 0 together.

use anyhow::Context as _;
use serde::Serialize;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::ledger::Ledger;
use crate::ledger::account::{Account, BATCHES_BY_KIND, account_in, number};
use crate::pg::{self, Tx};
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// What one pass has to the account of its table, each row counted once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PassAccount {
    /// Its number; `None`: batches that an audit has found, and of which no pass is known.
    pub pass: Option<i64>,
    /// Rows created since then (UTC); `None`: from the beginning.
    pub since: Option<String>,
    /// Rows created before then (UTC).
    pub until: Option<String>,
    /// Whether it takes only rows of a tenant or an app.
    pub is_filtered: bool,
    pub is_done: bool,
    /// Rows that it has read.
    pub seen: u64,
    /// Of these, rows that an earlier pass had accounted for; and held rows that turned out to be
    /// in a batch already.
    pub already: u64,
    /// Rows of its batches that no pass has seen: an audit found them in SLS.
    pub adopted: u64,
    /// Rows in its live batches of the logstore as it is now.
    pub live: u64,
    pub lost: u64,
    /// Rows in its batches that went into the logstore before it was made anew.
    pub earlier: u64,
    /// Those of `live` that may or may not be in SLS yet.
    pub in_doubt: u64,
    /// Rows that it was the first to see and that are held still.
    pub held: u64,
    /// Held rows that it found to be gone.
    pub gone: u64,
}

impl PassAccount {
    /// Rows that this pass saw first and that stand with other passes now; below 0: rows of others
    /// that stand with this one.
    pub fn moved(&self) -> i64 {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let standing = self.live + self.lost + self.earlier + self.held + self.already + self.gone;
        signed(self.seen + self.adopted) - signed(standing)
    }

    /// Adds what another pass has.
    pub fn add(&mut self, other: &Self) {
        self.seen += other.seen;
        self.already += other.already;
        self.adopted += other.adopted;
        self.live += other.live;
        self.lost += other.lost;
        self.earlier += other.earlier;
        self.in_doubt += other.in_doubt;
        self.held += other.held;
        self.gone += other.gone;
    }

    /// Whether it has what all passes of `account` have together.
    pub fn is_all_of(&self, account: &Account) -> bool {
        let own = [self.seen, self.already, self.adopted, self.live, self.lost, self.earlier];
        let all = [
            account.seen,
            account.already,
            account.adopted,
            account.live,
            account.lost,
            account.earlier,
        ];
        own == all
            && [self.in_doubt, self.held, self.gone]
                == [account.in_the_air, account.held_rows(), account.gone]
    }
}

impl Ledger {
    /// The account of `table` over all passes, and what each pass has to it, in one snapshot.
    ///
    /// Fails if the passes are not the whole.
    pub async fn account_by_pass(
        &self,
        table: Table,
    ) -> anyhow::Result<(Account, Vec<PassAccount>)> {
        let covered = self.covered_until(table).await?;
        let mut tx = self.begin_count().await?;
        let account = account_in(&mut tx, table, covered).await?;
        let passes = passes_in(&mut tx, table).await?;
        let mut all = PassAccount::default();
        passes.iter().for_each(|pass| all.add(pass));
        anyhow::ensure!(
            all.is_all_of(&account),
            "the passes of {table} are not its account: this is a bug, please report it\n\
             nothing is lost: no row leaves Postgres before it is proved one by one"
        );
        Ok((account, passes))
    }
}

/// The passes of `table` that have anything to its account, in their order; what belongs to none
/// comes last.
async fn passes_in(tx: &mut Tx, table: Table) -> anyhow::Result<Vec<PassAccount>> {
    let context = || format!("add up the passes of {table}");
    let rows = pg::made_statement(&format!(
        "WITH ranges AS (SELECT pass_id, sum(rows_seen)::int8 AS seen, \
             sum(rows_already)::int8 AS already, sum(rows_gone)::int8 AS gone, \
             sum(rows_expired)::int8 AS expired \
           FROM sls_backfill.range r JOIN sls_backfill.pass p ON p.id = r.pass_id \
           WHERE p.table_name = $1 GROUP BY pass_id), \
         batches AS (SELECT pass_id, sum(rows) FILTER (WHERE kind = 'live')::int8 AS live, \
             sum(rows) FILTER (WHERE kind = 'lost')::int8 AS lost, \
             sum(rows) FILTER (WHERE kind = 'earlier')::int8 AS earlier, \
             sum(adopted_rows)::int8 AS adopted, \
             sum(rows) FILTER (WHERE kind = 'live' AND state = 'intent')::int8 AS in_doubt \
           {BATCHES_BY_KIND} GROUP BY pass_id), \
         holds AS (SELECT pass_id, count(*) AS held FROM sls_backfill.hold \
           WHERE table_name = $1 AND state = 'open' GROUP BY pass_id), \
         passes AS (SELECT id, since, until, num_nonnulls(tenant_id, app_id) > 0 AS is_filtered, \
             state = 'done' AS is_done FROM sls_backfill.pass WHERE table_name = $1 \
           UNION ALL SELECT NULL, NULL, NULL, false, true \
             FROM batches WHERE pass_id IS NULL) \
         SELECT p.id, p.since, p.until, p.is_filtered, p.is_done, \
           coalesce(r.seen, 0) AS seen, coalesce(r.already, 0) AS already, \
           coalesce(r.gone, 0) AS gone, coalesce(b.adopted, 0) AS adopted, \
           coalesce(b.live, 0) AS live, coalesce(b.lost, 0) AS lost, \
           coalesce(b.earlier, 0) AS earlier, coalesce(b.in_doubt, 0) AS in_doubt, \
           coalesce(h.held, 0) + coalesce(r.expired, 0) AS held \
         FROM passes p LEFT JOIN ranges r ON r.pass_id = p.id \
         LEFT JOIN batches b ON b.pass_id IS NOT DISTINCT FROM p.id \
         LEFT JOIN holds h ON h.pass_id = p.id ORDER BY p.id NULLS LAST"
    ))
    .bind(table.name())
    .fetch_all(&mut **tx)
    .await
    .with_context(context)?;
    rows.iter().map(pass_account).collect()
}

fn pass_account(row: &PgRow) -> anyhow::Result<PassAccount> {
    let time = |name: &str| -> anyhow::Result<Option<String>> {
        let time: Option<Timestamp> = row.try_get(name)?;
        Ok(time.map(|time| time.to_string()))
    };
    Ok(PassAccount {
        pass: row.try_get("id")?,
        since: time("since")?,
        until: time("until")?,
        is_filtered: row.try_get("is_filtered")?,
        is_done: row.try_get("is_done")?,
        seen: number(row, "seen")?,
        already: number(row, "already")?,
        adopted: number(row, "adopted")?,
        live: number(row, "live")?,
        lost: number(row, "lost")?,
        earlier: number(row, "earlier")?,
        in_doubt: number(row, "in_doubt")?,
        held: number(row, "held")?,
        gone: number(row, "gone")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_another_pass_has_sent_is_moved_and_all_passes_are_the_account() {
        // Of the ten rows that waited at first the second pass has sent three, and found one gone.
        let first = PassAccount { seen: 100, live: 90, held: 6, ..PassAccount::default() };
        let second = PassAccount { seen: 30, already: 25, live: 8, gone: 1, ..first.clone() };
        let second = PassAccount { held: 0, ..second };
        assert_eq!((first.moved(), second.moved()), (4, -4));
        let mut all = PassAccount::default();
        all.add(&first);
        all.add(&second);
        let held = [("running".to_owned(), 6)].into();
        let account =
            Account { seen: 130, already: 25, live: 98, gone: 1, held, ..Account::default() };
        assert!(account.is_balanced() && all.is_all_of(&account));
        assert!(!all.is_all_of(&Account { live: 97, ..account }));
    }
}
