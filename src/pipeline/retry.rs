//! Repeats reads of SLS, which may be repeated freely.

use std::future::Future;

use crate::pipeline::guard::pace::backoff;
use crate::sls::answer::{Failure, NextAction};

/// After so many failures in a row a read is given up; with the waits between, about a minute.
const ATTEMPTS_MAX: u32 = 12;

/// After so many failures in a row, about a second, a warning says that something is odd.
const TOLD_AT: u32 = 3;

/// Calls `read` until it succeeds, fails for good, or has failed too often.
pub async fn with_retries<T, F: Future<Output = Result<T, Failure>>>(
    mut read: impl FnMut() -> F,
) -> Result<T, Failure> {
    let mut attempt = 0;
    loop {
        let failure = match read().await {
            Ok(value) => return Ok(value),
            Err(failure) => failure,
        };
        attempt += 1;
        let repeat = matches!(
            failure.next,
            NextAction::Later | NextAction::NotSent | NextAction::SignAnew | NextAction::Unknown
        );
        if !repeat || attempt == ATTEMPTS_MAX {
            return Err(failure);
        }
        if attempt == TOLD_AT {
            tracing::warn!("{failure}; trying on for a minute");
        }
        tokio::time::sleep(backoff(attempt, rand::random())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn a_read_is_repeated_until_it_succeeds_or_cannot() {
        let calls = Cell::new(0);
        let answer = with_retries(|| {
            calls.set(calls.get() + 1);
            let nth = calls.get();
            async move { if nth < 3 { Err(Failure::unknown("cut")) } else { Ok(nth) } }
        });
        assert_eq!(answer.await, Ok(3));
        let stop = Failure { next: NextAction::Stop, code: String::new(), what: "no".to_owned() };
        let calls = Cell::new(0);
        let answer = with_retries(|| {
            calls.set(calls.get() + 1);
            let stop = stop.clone();
            async move { Err::<(), _>(stop) }
        });
        assert_eq!(answer.await, Err(stop.clone()));
        assert_eq!(calls.get(), 1);
    }
}
