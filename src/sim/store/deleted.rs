//! The logs of a logstore that were deleted: they stay stored, and are hidden from queries.

use std::collections::HashSet;

use serde_json::Value;

use crate::sim::store::place::Place;

#[derive(Default)]
pub struct Deleted {
    places: HashSet<Place>,
    /// The tasks that did it, as answers describe them.
    pub tasks: Vec<Value>,
}

impl Deleted {
    pub fn hides(&self, place: Place) -> bool {
        self.places.contains(&place)
    }

    pub fn hide(&mut self, places: impl IntoIterator<Item = Place>) {
        self.places.extend(places);
    }
}
