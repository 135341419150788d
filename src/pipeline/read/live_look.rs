//! Looks up, before rows are sent, which of them another writer has stored: Dify's own.
//!
//! One page of heads comes in with its fates, and goes out with those of the rows changed that are
//! in SLS already (`live`) or about which nobody can tell (`live?`). Only rows that would be sent and
//! finished in the other writer's time are asked about.
//!
//! Why *not there* is final for a row, although Dify writes on:
//!
//! 1. Dify's writer stores a row's terminal log in SLS, and has its answer, before it writes the
//!    terminal row to Postgres. So whatever it stores of a row was stored before the row's head was
//!    read as terminal here.
//! 2. Search shows what was written a moment ago after 3 s (SLS's documents: real-time logs). *Not
//!    there* counts only from a query that began [`SEARCHABLE_AFTER`] after the head was read, over
//!    all log times of that writer: its clock is not asked when the row finished.
//! 3. Rows that finished less than [`SETTLED_S`] ago wait, so an index that lags for minutes hides no
//!    log of a row that was written when it finished.
//! 4. The batch's intent comes after the look. A row whose finish time is another one when it is read
//!    was not looked up, and is held (`assemble.rs`).
//!
//! A log that is found is found, whatever else an answer lacks. So the first query of some rows goes
//! over the time around their finish, which costs little and finds nearly all where Dify wrote to
//! both; only those not found there are looked for everywhere.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use uuid::Uuid;

use crate::dify::eligibility::is_terminal;
use crate::pipeline::guard::live_writer::{AHEAD_S, LivePeriod};
use crate::pipeline::progress::Progress;
use crate::pipeline::read::batching::Fate;
use crate::pipeline::retry::with_retries;
use crate::pipeline::shutdown::Shutdown;
use crate::pipeline::verify::counts::window::{Window, halves};
use crate::record::hold::HoldReason;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::sls::client::Client;
use crate::sls::sql::is_too_much;
use crate::sls::tags::LOG_SOURCE;
use crate::source::page::Head;

/// What was written so long ago is found by search (SLS's documents: 3 s for logs that come within
/// minutes of their time).
pub const SEARCHABLE_AFTER: Duration = Duration::from_secs(5);

/// Rows that finished more recently wait for a later run (s): some indexes lag for minutes.
pub const SETTLED_S: i64 = 600;

/// Ids in one query: 20 KB of text. No document names a limit of SQL's length.
pub const IDS_MAX: usize = 500;

/// Rows of an answer: an id has a handful of states at most.
const ROWS_MAX: usize = 10_000;

/// How far from a row's finish its log is looked for first (s).
const NEAR_S: i64 = 3600;

/// Queries in flight; a project has 15 for all its users.
pub const QUERIES_MAX: usize = 4;

/// An incomplete answer is asked for again so often before its window is halved.
const TRIES_MAX: u32 = 3;

/// So many windows are asked about the same ids before that is given up.
const WINDOWS_MAX: u32 = 64;

/// After so many looks in a row that told nothing SLS is left alone for a while.
const UNCLEAR_MAX: u32 = 3;

/// For how long.
const LEFT_ALONE: Duration = Duration::from_secs(60);

/// What the look of one table works with.
pub struct LiveLookParts {
    pub client: Client,
    pub table: Table,
    pub period: LivePeriod,
    /// What was written so long ago is found by search.
    pub searchable_after: Duration,
    pub progress: Arc<Progress>,
    pub shutdown: Shutdown,
}

/// The look of one table; its workers share it.
pub struct LiveLook {
    parts: LiveLookParts,
    queries: Semaphore,
    in_a_row: Mutex<InARow>,
}

/// Looks that told nothing, one after the other.
#[derive(Debug, Default)]
struct InARow {
    looks: u32,
    left_alone_until: Option<Instant>,
}

impl InARow {
    fn note(&mut self, is_clear: bool, now: Instant) {
        self.looks = if is_clear { 0 } else { self.looks + 1 };
        if self.looks >= UNCLEAR_MAX {
            self.left_alone_until = Some(now + LEFT_ALONE);
        }
    }

    /// Whether SLS is not asked now.
    fn is_left_alone(&self, now: Instant) -> bool {
        self.left_alone_until.is_some_and(|until| now < until)
    }
}

/// A row that is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    id: Uuid,
    /// Unix seconds.
    finished_s: i64,
    /// Its status is `retry`: an attempt of a node that was repeated.
    is_retry: bool,
}

/// What the queries about some rows told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answered {
    there: HashSet<Uuid>,
    /// Why rows that are not among these may be there all the same.
    unclear: Option<String>,
}

impl LiveLook {
    pub fn new(parts: LiveLookParts) -> Self {
        Self { parts, queries: Semaphore::new(QUERIES_MAX), in_a_row: Mutex::default() }
    }

    /// Changes the fates of those of `heads`, just read, that another writer has stored or may have.
    /// `fates` are theirs, in the same order.
    pub async fn judge(&self, heads: &[Head], fates: &mut [Fate]) {
        let read_at = Instant::now();
        let since = self.parts.period.since();
        let now_s = self.parts.client.now();
        let mut asked = Vec::new();
        for (head, fate) in heads.iter().zip(fates.iter_mut()) {
            let Fate::Take { .. } = fate else { continue };
            let Some(at) = head.finished_at.filter(|at| *at >= since) else { continue };
            let Some(finished_s) = at.unix_s() else { continue };
            if finished_s > now_s - SETTLED_S {
                let why = "SLS's search may not find yet what was written when it finished";
                *fate = unclear(at, why);
                continue;
            }
            asked.push(Asked { id: head.row_id, finished_s, is_retry: head.status == b"retry" });
        }
        if asked.is_empty() {
            return;
        }
        let found = self.look(asked, read_at).await;
        for (head, fate) in heads.iter().zip(fates) {
            match (found.get(&head.row_id), head.finished_at) {
                (Some(None), _) => {
                    *fate = Fate::Hold {
                        reason: HoldReason::Live,
                        detail: "SLS has a terminal log of it that another writer wrote".to_owned(),
                        look_again: HoldReason::Live.look_again(),
                    }
                }
                (Some(Some(why)), Some(at)) => *fate = unclear(at, why),
                _ => {}
            }
        }
    }

    /// Which of `asked` are there (`None`), or may be there, and why nobody can tell; those that are
    /// not there are not named.
    async fn look(&self, mut asked: Vec<Asked>, read_at: Instant) -> HashMap<Uuid, Option<String>> {
        asked.sort_by_key(|row| row.finished_s);
        let mut found = HashMap::new();
        let mut left = Vec::new();
        for rows in asked.chunks(IDS_MAX) {
            let Answered { there, unclear } = self.ask(rows, near(rows)).await;
            let others = rows.iter().filter(|row| !there.contains(&row.id));
            match unclear {
                None => left.extend(others),
                Some(why) => found.extend(others.map(|row| (row.id, Some(why.clone())))),
            }
            found.extend(there.into_iter().map(|id| (id, None)));
        }
        if !left.is_empty() {
            let _shown =
                self.parts.progress.wait("SLS's search shows what was written only after seconds");
            let searchable_at = read_at + self.parts.searchable_after;
            let mut shutdown = self.parts.shutdown.clone();
            shutdown.or(tokio::time::sleep_until(searchable_at)).await;
        }
        for rows in left.chunks(IDS_MAX) {
            let Answered { there, unclear } = self.ask(rows, self.everywhere()).await;
            if let Some(why) = unclear {
                let unknown = rows.iter().filter(|row| !there.contains(&row.id));
                found.extend(unknown.map(|row| (row.id, Some(why.clone()))));
            }
            found.extend(there.into_iter().map(|id| (id, None)));
        }
        found
    }

    fn everywhere(&self) -> Window {
        let from = self.parts.period.since().unix_s().unwrap_or(0).max(0);
        Window { from, to: self.parts.client.now() + AHEAD_S }
    }

    /// Asks for logs of `rows` in the window. Never fails: what it cannot find out is unclear, and
    /// tried again by the next run.
    async fn ask(&self, rows: &[Asked], window: Window) -> Answered {
        let mut answered = Answered::default();
        if let Some(why) = self.is_useless() {
            answered.unclear = Some(why);
            return answered;
        }
        let mut shutdown = self.parts.shutdown.clone();
        let asked = shutdown.or(self.ask_windows(rows, window, &mut answered.there)).await;
        // Who was asked to stop records nothing more.
        let asked = asked.unwrap_or_else(|| Err("the run was asked to stop".to_owned()));
        self.in_a_row().note(asked.is_ok(), Instant::now());
        answered.unclear = asked.err();
        answered
    }

    async fn ask_windows(
        &self,
        rows: &[Asked],
        window: Window,
        there: &mut HashSet<Uuid>,
    ) -> Result<(), String> {
        let query = query(rows);
        let (mut windows, mut count) = (vec![window], 0);
        while let Some(window) = windows.pop() {
            count += 1;
            if self.ask_window(rows, window, &query, there).await? {
                continue;
            }
            let halves = halves(window).filter(|_| count < WINDOWS_MAX);
            windows.extend(halves.ok_or("SLS's answer stays incomplete")?);
        }
        Ok(())
    }

    /// Adds what is found to `there`; gives whether SLS has looked through the whole window.
    async fn ask_window(
        &self,
        rows: &[Asked],
        window: Window,
        query: &str,
        there: &mut HashSet<Uuid>,
    ) -> Result<bool, String> {
        let LiveLookParts { client, table, .. } = &self.parts;
        let permit = self.queries.acquire().await;
        let _permit = permit.expect("nobody closes the semaphore");
        for attempt in 1..=TRIES_MAX {
            let logstore = table.logstore();
            let answer = with_retries(|| client.sql(logstore, window.from, window.to, query)).await;
            let answer = match answer {
                Err(failure) if is_too_much(&failure) => return Ok(false),
                answer => answer.map_err(|failure| failure.to_string())?,
            };
            add_found(*table, rows, &answer.rows, there)?;
            if answer.is_complete && answer.rows.len() < ROWS_MAX {
                return Ok(true);
            }
            if attempt < TRIES_MAX {
                tokio::time::sleep(Duration::from_millis(200) * attempt).await;
            }
        }
        Ok(false)
    }

    /// Why it is of no use to ask now; `None`: it is.
    fn is_useless(&self) -> Option<String> {
        if !self.parts.period.is_searchable {
            return Some("logs of another writer were read that SLS's search does not find".into());
        }
        let is_left_alone = self.in_a_row().is_left_alone(Instant::now());
        is_left_alone.then(|| "SLS could not tell of the rows before it, either".to_owned())
    }

    fn in_a_row(&self) -> MutexGuard<'_, InARow> {
        self.in_a_row.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many queries so many rows take: one where all are there, two where none is.
pub fn queries_expected(rows: u64) -> (u64, u64) {
    let queries = rows.div_ceil(IDS_MAX as u64);
    (queries, 2 * queries)
}

fn unclear(finished_at: Timestamp, why: &str) -> Fate {
    let reason = HoldReason::LiveUnclear;
    let detail =
        format!("it finished at {finished_at}; whether another writer has stored it: {why}");
    Fate::Hold { reason, detail, look_again: reason.look_again() }
}

/// The log times around the finish of `rows`, which are in the order of their finish.
fn near(rows: &[Asked]) -> Window {
    let at = |row: Option<&Asked>| row.map_or(0, |row| row.finished_s);
    Window { from: (at(rows.first()) - NEAR_S).max(0), to: at(rows.last()) + NEAR_S }
}

/// The states of logs of these rows that are not ours.
fn query(rows: &[Asked]) -> String {
    let ids: Vec<_> = rows.iter().map(|row| format!("'{}'", row.id)).collect();
    format!(
        "not __source__: \"{LOG_SOURCE}\" | SELECT id, status FROM log WHERE id IN ({}) \
         GROUP BY id, status LIMIT {ROWS_MAX}",
        ids.join(", ")
    )
}

/// Adds those of `asked` of which `states` name a terminal log. One of an attempt that was repeated
/// (`retry`) is that of a row which is such an attempt; another row's last log is still to come.
fn add_found(
    table: Table,
    asked: &[Asked],
    states: &[BTreeMap<String, String>],
    there: &mut HashSet<Uuid>,
) -> Result<(), String> {
    let retries: HashSet<Uuid> =
        asked.iter().filter(|row| row.is_retry).map(|row| row.id).collect();
    for state in states {
        let text = |name: &str| state.get(name).ok_or(format!("SLS's answer lacks column {name}"));
        let (id, status) = (text("id")?, text("status")?);
        let id = Uuid::parse_str(id).map_err(|_| format!("SLS's answer has the id {id:?}"))?;
        let is_last = status != "retry" || retries.contains(&id);
        if is_terminal(table, status.as_bytes()) && is_last {
            there.insert(id);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(number: u128, finished_s: i64, is_retry: bool) -> Asked {
        Asked { id: Uuid::from_u128(number), finished_s, is_retry }
    }

    fn there(table: Table, rows: &[Asked], states: &[(u128, &str)]) -> Vec<u128> {
        let state = |(id, status): &(u128, &str)| {
            let id = Uuid::from_u128(*id).to_string();
            BTreeMap::from([("id".to_owned(), id), ("status".to_owned(), (*status).to_owned())])
        };
        let states: Vec<_> = states.iter().map(state).collect();
        let mut there = HashSet::new();
        add_found(table, rows, &states, &mut there).unwrap();
        let mut there: Vec<_> = there.iter().map(Uuid::as_u128).collect();
        there.sort_unstable();
        there
    }

    #[test]
    fn a_row_is_there_by_a_terminal_log() {
        let rows = [1, 2, 3, 4].map(|number| asked(number, 0, false));
        let states = [(1, "running"), (2, "running"), (2, "failed"), (3, "partial-succeeded")];
        assert_eq!(there(Table::Runs, &rows, &states), [2, 3]);
        let states = [(1, "exception"), (2, "paused"), (3, "partial-succeeded"), (4, "stopped")];
        assert_eq!(there(Table::NodeExecutions, &rows, &states), [1, 4]);
    }

    #[test]
    fn the_log_of_a_repeated_attempt_is_that_of_such_a_row_alone() {
        let rows = [asked(1, 0, true), asked(2, 0, false), asked(3, 0, false)];
        let states = [(1, "retry"), (2, "retry"), (3, "retry"), (3, "succeeded")];
        assert_eq!(there(Table::NodeExecutions, &rows, &states), [1, 3]);
    }

    #[test]
    fn an_answer_that_is_none_is_not_taken_for_one() {
        let mut there = HashSet::new();
        for row in [vec![("id", "x"), ("status", "failed")], vec![("id", "x")], vec![]] {
            let row = row.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            assert!(add_found(Table::Runs, &[], &[row], &mut there).is_err());
        }
    }

    #[test]
    fn sls_is_left_alone_for_a_while_after_looks_that_told_nothing() {
        let (mut in_a_row, now) = (InARow::default(), Instant::now());
        for is_clear in [false, false, true, false, false] {
            in_a_row.note(is_clear, now);
            assert!(!in_a_row.is_left_alone(now));
        }
        in_a_row.note(false, now);
        assert!(in_a_row.is_left_alone(now + LEFT_ALONE - Duration::from_millis(1)));
        assert!(!in_a_row.is_left_alone(now + LEFT_ALONE));
    }

    #[test]
    fn rows_are_first_looked_for_around_their_finish() {
        let rows = [asked(1, 10_000, false), asked(2, 50_000, false)];
        assert_eq!(near(&rows), Window { from: 6400, to: 53_600 });
        assert_eq!(near(&[asked(1, 100, false)]).from, 0);
    }

    #[test]
    fn a_query_names_ids_and_leaves_our_own_logs_out() {
        let query = query(&[asked(1, 0, false), asked(2, 0, false)]);
        assert_eq!(
            query,
            "not __source__: \"dify-sls-backfill\" | SELECT id, status FROM log WHERE id IN \
             ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000002') \
             GROUP BY id, status LIMIT 10000"
        );
        assert_eq!(queries_expected(1_000_000), (2000, 4000));
    }
}
