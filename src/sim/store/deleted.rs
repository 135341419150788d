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

    /// The log at `lost` is gone, and those behind it in its group have moved up.
    pub fn forget(&mut self, lost: Place) {
        let moved = |place: Place| match place {
            Place { shard, group, log } if (shard, group) == (lost.shard, lost.group) => {
                (log != lost.log).then(|| Place { log: log - usize::from(log > lost.log), ..place })
            }
            other => Some(other),
        };
        self.places = self.places.drain().filter_map(moved).collect();
    }

    pub fn hide(&mut self, places: impl IntoIterator<Item = Place>) {
        self.places.extend(places);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_stays_hidden_when_a_log_before_it_is_lost() {
        let place = |group, log| Place { shard: 1, group, log };
        let mut deleted = Deleted::default();
        deleted.hide([place(0, 1), place(0, 2), place(0, 4), place(1, 4)]);
        deleted.forget(place(0, 2));
        let hidden: Vec<_> = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 3), (1, 4)]
            .into_iter()
            .filter(|(group, log)| deleted.hides(place(*group, *log)))
            .collect();
        assert_eq!(hidden, [(0, 1), (0, 3), (1, 4)]);
    }
}
