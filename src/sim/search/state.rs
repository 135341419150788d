//! What queries leave behind for the next one, for each logstore.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use crate::sim::sql::table::Table;
use crate::sim::store::logstore::Logstore;
use crate::sim::switch::Switches;
use crate::sim::sync::lock;

/// The states of all logstores that were queried and still exist.
#[derive(Default)]
pub struct QueryStates(Mutex<Vec<(Weak<Logstore>, Arc<QueryState>)>>);

#[derive(Default)]
pub struct QueryState {
    /// The logstore's table for SQL, kept from one statement to the next.
    pub table: Mutex<Option<Table>>,
    asked: Mutex<Asked>,
}

/// How often queries came.
#[derive(Default)]
struct Asked {
    all: u64,
    /// How often each was answered in part, by its times and words.
    in_part: HashMap<(i64, i64, String), u64>,
}

/// So many different queries are told apart; then all are forgotten.
const QUERIES_MAX: usize = 10_000;

impl QueryStates {
    pub fn of(&self, logstore: &Arc<Logstore>) -> Arc<QueryState> {
        let mut states = lock(&self.0);
        states.retain(|(owner, _)| owner.strong_count() > 0);
        let is_its = |owner: &Weak<Logstore>| Weak::as_ptr(owner) == Arc::as_ptr(logstore);
        if let Some((_, state)) = states.iter().find(|(owner, _)| is_its(owner)) {
            return Arc::clone(state);
        }
        let state = Arc::<QueryState>::default();
        states.push((Arc::downgrade(logstore), Arc::clone(&state)));
        state
    }
}

impl QueryState {
    /// Counts a query of these times and words; says whether it is one that sees a part only.
    pub fn is_incomplete(&self, times: (i64, i64), query: &str, switches: &Switches) -> bool {
        let mut asked = lock(&self.asked);
        asked.all += 1;
        if switches.incomplete_every.is_some_and(|every| asked.all.is_multiple_of(every)) {
            return true;
        }
        if switches.incomplete_times == 0 {
            return false;
        }
        if asked.in_part.len() >= QUERIES_MAX {
            asked.in_part.clear();
        }
        let count = asked.in_part.entry((times.0, times.1, query.to_owned())).or_default();
        *count += 1;
        *count <= switches.incomplete_times
    }
}
