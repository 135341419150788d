//! What a logstore remembers for queries, beside its logs.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use crate::sim::search::found::Place;
use crate::sim::sql::Kept;

#[derive(Default)]
pub struct QueryState {
    /// Its table for SQL.
    pub table: Kept,
    pub deleted: Mutex<Deleted>,
    asked: AtomicU64,
}

/// Logs that were deleted: they stay stored, and are hidden from queries.
#[derive(Default)]
pub struct Deleted {
    places: HashSet<Place>,
    /// The tasks that did it, as they are told.
    pub tasks: Vec<Value>,
}

impl QueryState {
    /// Counts a query; tells whether it is one of the `every` n-th that see a part only.
    pub fn is_incomplete(&self, every: Option<u64>) -> bool {
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        every.is_some_and(|every| number.is_multiple_of(every))
    }
}

impl Deleted {
    pub fn hides(&self, place: Place) -> bool {
        self.places.contains(&place)
    }

    pub fn hide(&mut self, places: impl IntoIterator<Item = Place>) {
        self.places.extend(places);
    }
}
