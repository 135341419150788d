//! Dates signatures of batches that SLS certainly does not have, and only for as long as it is known that nobody else is at work.
//!
//! A process that was stopped for an hour and wakes up does not know whether an audit has taken its
//! place meanwhile. So no signature is dated later than a while after the last look at whose
//! consumer groups there are ([`Windows::look_life_s`]): an audit that waits for that long, and then
//! for the signature to end, has waited for everything. The date is taken first and compared then,
//! so a process that is stopped in between sends with an old date, which SLS refuses.

use tokio::sync::watch;

use crate::pipeline::progress::Progress;
use crate::pipeline::settle::Windows;
use crate::pipeline::stop::Stop;
use crate::sls::client::Client;

/// Knows when it was last seen that nobody else is at work.
#[derive(Debug)]
pub struct Lookout {
    /// Unix seconds, SLS's clock.
    looked_at: watch::Sender<i64>,
    life_s: i64,
}

impl Lookout {
    /// Nobody has looked yet.
    pub fn new(windows: Windows) -> Self {
        Self { looked_at: watch::Sender::new(i64::MIN), life_s: windows.look_life_s() }
    }

    /// Nobody else was at work at `at`: Unix seconds, SLS's clock, when the look began.
    pub fn note(&self, at: i64) {
        self.looked_at.send_replace(at);
    }

    /// The date (Unix seconds, SLS's clock) of a signature that is to be made now. Waits for a look
    /// where the last one is too old; `None`: somebody has asked to stop meanwhile.
    pub async fn date(&self, client: &Client, progress: &Progress, stop: &mut Stop) -> Option<i64> {
        let mut looked_at = self.looked_at.subscribe();
        loop {
            let date = client.now();
            if date <= looked_at.borrow_and_update().saturating_add(self.life_s) {
                return Some(date);
            }
            let _shown = progress.wait("nobody knows whether others are at work");
            if !matches!(stop.or(looked_at.changed()).await, Some(Ok(()))) {
                return None;
            }
        }
    }
}
