//! Counts the rows of a range once more when all of them are in the ledger: a check of the reading
//! by one statement of another form.

use crate::ledger::range::{Lease, RangeKind};
use crate::source::Source;
use crate::source::scope::{Scope, Span};

/// What counts the ranges of one pass.
#[derive(Clone)]
pub struct Recount {
    pub source: Source,
    /// The scope of the pass in its own key order.
    pub scope: Scope,
}

impl Recount {
    /// How many rows the range has now; `None`: it has no place in a key order, or they could not
    /// be counted.
    pub async fn rows(&self, lease: &Lease) -> Option<u64> {
        let RangeKind::Keys(order) = lease.kind else { return None };
        let scope = Scope { order, ..self.scope.clone() };
        let span = Span { after: lease.after, upto: lease.upto };
        match self.source.count(&scope, &span).await {
            Ok(rows) => Some(rows),
            // Only a check: that it cannot be made must not keep the range from being done.
            Err(error) => {
                tracing::warn!("range {} is not counted again: {error:#}", lease.range_id);
                None
            }
        }
    }
}
