//! Keeps away from Postgres while its replicas cannot follow.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::watch;

use crate::pipeline::progress::Progress;
use crate::pipeline::shutdown::Shutdown;
use crate::source::Source;

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

    /// Looks at Postgres, if there is anything to look at.
    pub async fn look(&self, source: &Source) -> anyhow::Result<()> {
        if let Some(max_s) = self.replica_lag_max_s {
            let lag_s = source.replica_lag_s().await?;
            self.reason.send_replace(reason_to_wait(lag_s, max_s));
        }
        Ok(())
    }

    /// Looks at Postgres now and then, for as long as it is polled.
    pub async fn watch(&self, source: &Source) -> Infallible {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Err(error) = self.look(source).await {
                // The reads themselves fail if it is more than a moment's trouble.
                tracing::warn!("{error:#}");
            }
        }
    }

    /// Waits until Postgres may be read, or somebody asks to stop.
    pub async fn pass(&self, progress: &Progress, shutdown: &mut Shutdown) {
        let mut reason = self.reason.subscribe();
        loop {
            let Some(why) = reason.borrow_and_update().clone() else { return };
            let _shown = progress.wait(why);
            if !matches!(shutdown.or(reason.changed()).await, Some(Ok(()))) {
                return;
            }
        }
    }
}

/// Why Postgres should be left alone for now.
fn reason_to_wait(replica_lag_s: Option<f64>, max_s: u32) -> Option<String> {
    let is_behind = replica_lag_s.is_some_and(|lag_s| lag_s > f64::from(max_s));
    is_behind
        .then(|| format!("a replica of Postgres is over {max_s} s behind (--replica-lag-max-s)"))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::pipeline::shutdown::channel;
    use crate::record::table::Table;

    #[test]
    fn postgres_is_left_alone_while_a_replica_is_too_far_behind() {
        assert_eq!(reason_to_wait(None, 10), None);
        assert_eq!(reason_to_wait(Some(10.0), 10), None);
        let reason = reason_to_wait(Some(10.5), 10).unwrap();
        assert!(reason.contains("over 10 s behind"), "{reason}");
    }

    #[tokio::test]
    async fn who_must_wait_shows_why_and_goes_on_when_it_is_over() {
        let (gate, progress) = (HealthGate::new(None), Progress::new(Table::Runs, 0));
        let (stopper, mut shutdown) = channel();
        gate.pass(&progress, &mut shutdown).await;
        gate.reason.send_replace(Some("busy".to_owned()));
        let mut other = shutdown.clone();
        let pass = gate.pass(&progress, &mut other);
        tokio::pin!(pass);
        assert!((&mut pass).now_or_never().is_none());
        assert_eq!(progress.waiting(), [("busy".to_owned(), 1)]);
        gate.reason.send_replace(None);
        pass.await;
        gate.reason.send_replace(Some("busy".to_owned()));
        stopper.stop();
        gate.pass(&progress, &mut shutdown).await;
        assert_eq!(progress.waiting(), []);
    }
}
