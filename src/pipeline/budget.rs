//! Budgets that are bounds, not rates: memory for batches in the making, rows of a run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A batch passes through Postgres's buffer, the group and its compressed form.
const COPIES: u64 = 3;

/// How much memory batches in the making may take together.
#[derive(Debug, Clone)]
pub struct MemoryBudget {
    semaphore: Arc<Semaphore>,
    kib_max: u32,
}

impl MemoryBudget {
    /// A budget of `bytes`.
    pub fn new(bytes: u64) -> Self {
        let kib_max = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).max(1);
        Self { semaphore: Arc::new(Semaphore::new(kib_max as usize)), kib_max }
    }

    /// Waits until a batch of `batch_bytes` fits. One that would never fit waits to be alone.
    pub async fn take(&self, batch_bytes: u64) -> OwnedSemaphorePermit {
        let kib = u32::try_from(batch_bytes * COPIES / 1024).unwrap_or(u32::MAX);
        let semaphore = Arc::clone(&self.semaphore);
        semaphore
            .acquire_many_owned(kib.clamp(1, self.kib_max))
            .await
            .expect("nobody closes the semaphore")
    }
}

/// How many rows may still be sent; shared by all workers.
#[derive(Debug, Clone)]
pub struct RowBudget(Arc<AtomicU64>);

impl RowBudget {
    /// `None`: no bound.
    pub fn new(rows_max: Option<u64>) -> Self {
        Self(Arc::new(AtomicU64::new(rows_max.unwrap_or(u64::MAX))))
    }

    /// Takes up to `wanted` rows; 0 when the budget is spent.
    pub fn take(&self, wanted: u64) -> u64 {
        let take = |left: u64| Some(left - left.min(wanted));
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(left) | Err(left) => left.min(wanted),
        }
    }

    /// Gives back rows that were taken and not used.
    pub fn give_back(&self, rows: u64) {
        self.0.fetch_add(rows, Ordering::Relaxed);
    }

    /// Whether nothing is left.
    pub fn is_spent(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_row_budget_is_spent_once() {
        let budget = RowBudget::new(Some(10));
        assert_eq!((budget.take(7), budget.take(7)), (7, 3));
        assert!(budget.is_spent());
        budget.give_back(2);
        assert_eq!((budget.take(7), budget.take(7)), (2, 0));
        assert_eq!(RowBudget::new(None).take(4096), 4096);
    }

    #[tokio::test]
    async fn a_batch_over_the_budget_waits_to_be_alone() {
        let budget = MemoryBudget::new(3 << 20);
        let small = budget.take(1 << 19).await;
        let huge = budget.take(1 << 30);
        tokio::pin!(huge);
        let early = tokio::time::timeout(Duration::from_millis(20), &mut huge).await;
        assert!(early.is_err(), "it must wait for the small one");
        drop(small);
        drop(huge.await);
    }
}
