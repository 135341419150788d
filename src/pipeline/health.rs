//! Keeps away from Postgres while it has enough to do with others.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::watch;

use crate::pipeline::progress::Progress;
use crate::pipeline::stop::Stop;
use crate::source::Source;
use crate::source::health::Health;

/// How often Postgres is asked how it fares.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Says whether Postgres may be read now; shared by all workers.
#[derive(Debug)]
pub struct HealthGate {
    /// Why not.
    reason: watch::Sender<Option<String>>,
    replica_lag_max_s: Option<u32>,
}

impl HealthGate {
    /// `replica_lag_max_s`: a replica may be that far behind; `None`: as far as it likes.
    pub fn new(replica_lag_max_s: Option<u32>) -> Self {
        Self { reason: watch::Sender::new(None), replica_lag_max_s }
    }

    /// Looks at Postgres now and then, for as long as it is polled.
    pub async fn watch(&self, source: &Source) -> Infallible {
        loop {
            match source.health().await {
                Ok(health) => {
                    let reason = reason_to_wait(&health, self.replica_lag_max_s);
                    self.reason.send_replace(reason);
                }
                // The reads themselves tell what is wrong.
                Err(error) => tracing::debug!("{error:#}"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until Postgres may be read, or somebody asks to stop.
    pub async fn pass(&self, progress: &Progress, stop: &mut Stop) {
        let mut reason = self.reason.subscribe();
        loop {
            let Some(why) = reason.borrow_and_update().clone() else { return };
            let _shown = progress.wait(why);
            if !matches!(stop.or(reason.changed()).await, Some(Ok(()))) {
                return;
            }
        }
    }
}

/// Why Postgres should be left alone for now.
fn reason_to_wait(health: &Health, replica_lag_max_s: Option<u32>) -> Option<String> {
    if health.lock_waits > 0 {
        // A read would stand in line behind it, and others behind the read.
        return Some("Postgres: somebody waits for a lock on the table".to_owned());
    }
    let (lag_s, max_s) = (health.replica_lag_s?, replica_lag_max_s?);
    (lag_s > f64::from(max_s))
        .then(|| format!("Postgres: a replica is more than {max_s} s behind (--replica-lag-max-s)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::stop::channel;
    use crate::record::table::Table;

    #[test]
    fn postgres_is_left_alone_while_locks_are_waited_for_or_a_replica_lags() {
        let health = Health { lock_waits: 0, replica_lag_s: None };
        assert_eq!(reason_to_wait(&health, Some(10)), None);
        let lagging = Health { replica_lag_s: Some(10.5), ..health };
        assert_eq!(reason_to_wait(&lagging, None), None);
        assert_eq!(reason_to_wait(&lagging, Some(11)), None);
        assert!(reason_to_wait(&lagging, Some(10)).unwrap().contains("more than 10 s behind"));
        let locked = Health { lock_waits: 1, ..lagging };
        assert!(reason_to_wait(&locked, None).unwrap().contains("a lock on the table"));
    }

    #[tokio::test]
    async fn who_must_wait_shows_why_and_goes_on_when_it_is_over() {
        let (gate, progress) = (HealthGate::new(None), Progress::new(Table::Runs, 0));
        let (stopper, mut stop) = channel();
        gate.pass(&progress, &mut stop).await;
        gate.reason.send_replace(Some("busy".to_owned()));
        let mut other = stop.clone();
        let pass = gate.pass(&progress, &mut other);
        tokio::pin!(pass);
        assert!(futures::FutureExt::now_or_never(&mut pass).is_none());
        assert_eq!(progress.waiting(), [("busy".to_owned(), 1)]);
        gate.reason.send_replace(None);
        pass.await;
        gate.reason.send_replace(Some("busy".to_owned()));
        stopper.stop();
        gate.pass(&progress, &mut stop).await;
        assert_eq!(progress.waiting(), []);
    }
}
