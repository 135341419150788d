//! Dates signatures of batches that SLS certainly does not have, and only for as long as it is known that nobody else is at work.
//!
//! A process that was stopped for an hour and wakes up does not know whether an audit has taken its
//! place meanwhile. So no signature is dated later than a while after the last look at whose
//! consumer groups there are ([`Timings::look_life_s`]): an audit that waits for that long, and then
//! for the signature to end, has waited for everything. The date is taken first and compared then,
//! so a process that is stopped in between sends with an old date, which SLS refuses.

use tokio::sync::watch;

use crate::pipeline::progress::Progress;
use crate::pipeline::recover::rules::Timings;
use crate::pipeline::shutdown::Shutdown;
use crate::sls::client::Client;

/// Knows when it was last seen that nobody else is at work.
#[derive(Debug)]
pub struct SigningLease {
    /// Unix seconds, SLS's clock.
    looked_at: watch::Sender<i64>,
    life_s: i64,
}

impl SigningLease {
    /// Nobody has looked yet.
    pub fn new(timings: Timings) -> Self {
        Self { looked_at: watch::Sender::new(i64::MIN), life_s: timings.look_life_s() }
    }

    /// Nobody else was at work at `at`: Unix seconds, SLS's clock, when the look began.
    pub fn renew(&self, at: i64) {
        self.looked_at.send_replace(at);
    }

    /// The date (Unix seconds, SLS's clock) of a signature that is to be made now. Waits for a look
    /// where the last one is too old; `None`: somebody has asked to stop meanwhile.
    pub async fn sign_date(
        &self,
        client: &Client,
        progress: &Progress,
        shutdown: &mut Shutdown,
    ) -> Option<i64> {
        let mut looked_at = self.looked_at.subscribe();
        loop {
            let date = client.now();
            if is_fresh(date, *looked_at.borrow_and_update(), self.life_s) {
                return Some(date);
            }
            let _shown = progress.wait("nobody knows whether others are at work");
            if !matches!(shutdown.or(looked_at.changed()).await, Some(Ok(()))) {
                return None;
            }
        }
    }
}

/// Whether a signature may be dated `date` by who has looked for others at `looked_at` (Unix s).
pub fn is_fresh(date: i64, looked_at: i64, life_s: i64) -> bool {
    date <= looked_at.saturating_add(life_s)
}
