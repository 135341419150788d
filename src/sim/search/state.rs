//! What queries leave behind for the next one, for each logstore.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crate::sim::sql::table::Table;
use crate::sim::store::logstore::Logstore;
use crate::sim::sync::lock;

/// The states of all logstores that were queried and still exist.
#[derive(Default)]
pub struct QueryStates(Mutex<Vec<(Weak<Logstore>, Arc<QueryState>)>>);

#[derive(Default)]
pub struct QueryState {
    /// The logstore's table for SQL, kept from one statement to the next.
    pub table: Mutex<Option<Table>>,
    asked: AtomicU64,
}

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
    /// Counts a query; says whether it is one of the `every` n-th that see a part only.
    pub fn is_incomplete(&self, every: Option<u64>) -> bool {
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        every.is_some_and(|every| number.is_multiple_of(every))
    }
}
