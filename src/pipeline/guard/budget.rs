//! Budgets that are bounds, not rates: memory for batches in the making, rows of a run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A batch passes through Postgres's buffer, the group and its compressed form.
const COPIES: u64 = 3;

/// Memory taken from a budget, to which it goes back when dropped.
#[derive(Debug)]
pub struct TakenMemory(OwnedSemaphorePermit);

impl TakenMemory {
    /// Takes a part out for what is kept of a batch: `bytes` of it, or all there is.
    pub fn split_off(&mut self, bytes: usize) -> Self {
        let all = self.0.num_permits();
        let part = self.0.split((bytes / 1024 + 1).min(all));
        Self(part.expect("there are as many"))
    }
}

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
    pub async fn take(&self, batch_bytes: u64) -> TakenMemory {
        let kib = u32::try_from(batch_bytes * COPIES / 1024).unwrap_or(u32::MAX);
        let semaphore = Arc::clone(&self.semaphore);
        let taken = semaphore.acquire_many_owned(kib.clamp(1, self.kib_max)).await;
        TakenMemory(taken.expect("nobody closes the semaphore"))
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

    /// Takes up to `wanted` rows; none when the budget is spent.
    pub fn take(&self, wanted: u64) -> TakenRows {
        let take = |left: u64| Some(left - left.min(wanted));
        let left = match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(left) | Err(left) => left,
        };
        TakenRows { budget: self.clone(), rows: left.min(wanted) }
    }

    /// Whether nothing is left.
    pub fn is_spent(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

/// Rows taken from a budget; those that are not spent go back to it.
#[derive(Debug)]
pub struct TakenRows {
    budget: RowBudget,
    rows: u64,
}

impl TakenRows {
    /// How many they are.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Gives all but `rows` of them back.
    pub fn keep(&mut self, rows: u64) {
        let back = self.rows.saturating_sub(rows);
        self.rows -= back;
        self.budget.0.fetch_add(back, Ordering::Relaxed);
    }

    /// Takes `rows` of them, or all, out.
    pub fn split_off(&mut self, rows: u64) -> Self {
        let rows = self.rows.min(rows);
        self.rows -= rows;
        Self { budget: self.budget.clone(), rows }
    }

    /// They are used up.
    pub fn spend(mut self) {
        self.rows = 0;
    }
}

impl Drop for TakenRows {
    fn drop(&mut self) {
        self.keep(0);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_row_budget_is_spent_once() {
        let budget = RowBudget::new(Some(10));
        let (mut first, second) = (budget.take(7), budget.take(7));
        assert_eq!((first.rows(), second.rows()), (7, 3));
        assert!(budget.is_spent());
        first.keep(5);
        let part = first.split_off(2);
        assert_eq!((first.rows(), part.rows()), (3, 2));
        first.spend();
        second.spend();
        drop(part);
        assert_eq!(budget.take(7).rows(), 4, "twice two went back");
        assert_eq!(RowBudget::new(None).take(4096).rows(), 4096);
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
        let mut huge = huge.await;
        // What is kept of it leaves room for others.
        let kept = huge.split_off(1 << 20);
        drop(huge);
        drop(budget.take(1 << 19).await);
        drop(kept);
    }
}
