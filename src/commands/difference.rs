//! What can be wrong between Postgres, the ledger and SLS, in words, and the way on from each.

use std::cmp::Ordering;

/// A kind of difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Difference {
    /// SLS lacks logs that it had acknowledged.
    Missing,
    /// SLS holds logs more than once.
    Doubled,
    /// SLS holds other logs than were sent.
    Changed,
    /// SLS does not show yet what it acknowledged just now.
    Late,
    /// SLS holds a batch that the ledger has given up.
    GivenUp,
    /// SLS holds a batch that the ledger lacks.
    Foreign,
    /// What was in SLS certainly is not any more.
    Lost,
    /// Rows have changed in Postgres since they were sent.
    SourceChanged,
    /// Rows have left Postgres, and no purge has deleted them.
    SourceGone,
    /// Rows of Postgres are neither in a batch nor held, though a finished pass covers them.
    Unaccounted,
}

/// What was acknowledged so recently may still come to light: the life of a signature and what SLS
/// may take to store and show it, rounded up.
const LATE_S: i64 = 20 * 60;

impl Difference {
    /// What is the matter with a batch of `rows` rows of which SLS holds `found` logs that are not
    /// just these rows. `settled_ago_s`: how long ago it was known to be there.
    pub fn of_batch(rows: u64, found: u64, settled_ago_s: Option<i64>) -> Self {
        match found.cmp(&rows) {
            _ if rows == 0 => Self::GivenUp,
            Ordering::Greater => Self::Doubled,
            Ordering::Equal => Self::Changed,
            Ordering::Less if settled_ago_s.is_some_and(|ago_s| ago_s < LATE_S) => Self::Late,
            Ordering::Less => Self::Missing,
        }
    }

    /// What it is, after a number of batches or rows.
    pub fn what(self) -> &'static str {
        match self {
            Self::Missing => {
                "are missing in SLS, or a part of them is, though SLS had said that they were stored"
            }
            Self::Doubled => "are in SLS more than once",
            Self::Changed => "are in SLS with another content than they were sent with",
            Self::Late => {
                "were acknowledged by SLS only a moment ago, and it does not show them yet"
            }
            Self::GivenUp => {
                "are in SLS though they were given up, so their rows may be there twice"
            }
            Self::Foreign => "are in SLS under a tag that this ledger does not have there",
            Self::Lost => "were in SLS once and are not any more",
            Self::SourceChanged => {
                "have changed in Postgres since they were sent; SLS holds them as they were"
            }
            Self::SourceGone => {
                "are not in Postgres any more, though no purge has deleted them; SLS holds them"
            }
            Self::Unaccounted => {
                "are in Postgres and in no batch, and are not held, though a finished pass covers them"
            }
        }
    }

    /// What is safe, and what to type next.
    pub fn way_on(self) -> &'static str {
        match self {
            Self::Missing => {
                "the rows are still in Postgres, and nothing was deleted\n\
                 hint: `dify-sls-backfill verify --level content` makes sure; then `repair` shows \
                 what can be sent again"
            }
            Self::Doubled => {
                "nothing is lost, but Dify's token charts count doubles; running again does not \
                 take them away\n\
                 hint: `dify-sls-backfill verify --level content` names them; then `repair` shows \
                 the query that finds them and whether they can be hidden"
            }
            Self::Changed => {
                "the rows are still in Postgres, and are not sent again over it\n\
                 hint: `dify-sls-backfill verify --level content` names the rows; ask who else \
                 writes into this logstore, or transforms what comes in"
            }
            Self::Late => {
                "nothing is lost yet\n\
                 hint: in 20 minutes `dify-sls-backfill verify --level content` tells whether they \
                 came; do not send anything by hand"
            }
            Self::GivenUp => {
                "nothing is lost; nothing of them is sent again\n\
                 hint: `dify-sls-backfill audit` takes them back into the ledger; then `repair` \
                 shows what is there twice"
            }
            Self::Foreign => {
                "nothing is lost; nobody knows whether their rows are there twice\n\
                 hint: `dify-sls-backfill audit` writes them down, whoever has sent them"
            }
            Self::Lost => {
                "their rows are sent again only at your word\n\
                 hint: `dify-sls-backfill repair` shows what can be sent again"
            }
            Self::SourceChanged => {
                "a purge leaves them in Postgres\n\
                 hint: a new log of the same row would be counted twice by Dify's charts, so it is \
                 not sent; `--output json` lists the rows"
            }
            Self::SourceGone => {
                "SLS is now the only copy\n\
                 hint: if Dify's own clean-up did it, `dify-sls-backfill repair --execute` writes \
                 that down; else find out who deletes rows"
            }
            Self::Unaccounted => {
                "they are not in SLS, and no later run would look at them\n\
                 hint: `dify-sls-backfill repair --execute` gives them to the next run"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_18_rows_of_which_sls_holds_27_is_doubled() {
        for (rows, found, ago_s, wanted) in [
            (18, 27, Some(0), Difference::Doubled),
            (18, 27, None, Difference::Doubled),
            (18, 18, Some(9999), Difference::Changed),
            (18, 0, Some(9999), Difference::Missing),
            (18, 17, Some(9999), Difference::Missing),
            (18, 17, Some(60), Difference::Late),
            (0, 5, Some(60), Difference::GivenUp),
        ] {
            assert_eq!(Difference::of_batch(rows, found, ago_s), wanted, "{rows} {found}");
        }
    }

    #[test]
    fn every_difference_has_a_way_on_of_its_own() {
        let all = [
            Difference::Missing,
            Difference::Doubled,
            Difference::Changed,
            Difference::Late,
            Difference::GivenUp,
            Difference::Foreign,
            Difference::Lost,
            Difference::SourceChanged,
            Difference::SourceGone,
            Difference::Unaccounted,
        ];
        for (nth, one) in all.iter().enumerate() {
            let last = one.way_on().lines().last().unwrap_or_default();
            assert!(last.starts_with("hint: "), "{one:?}: {last}");
            for other in &all[nth + 1..] {
                assert_ne!(one.way_on(), other.way_on());
                assert_ne!(one.what(), other.what());
            }
        }
    }
}
