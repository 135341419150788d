//! Quotas: how much was used in the running second or minute.
//!
//! Windows are fixed: the first use after one has passed opens the next. SLS's own are "best
//! effort" too (aliyun, data read and write).

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::sim::answer::{Code, Refusal};
use crate::sim::clock::Moment;
use crate::sim::switch::Switches;
use crate::sim::sync::lock;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// What was used of one quota.
#[derive(Default)]
struct Window {
    began: Option<Instant>,
    used: u64,
}

impl Window {
    /// Whether `amount` fits beside what was used in this window. An empty window takes any amount:
    /// else what is larger than the quota would never pass.
    fn fits(&mut self, now: Instant, length: Duration, amount: u64, max: Option<u64>) -> bool {
        let over = self.began.is_none_or(|began| now.saturating_duration_since(began) >= length);
        if over {
            *self = Self { began: Some(now), used: 0 };
        }
        max.is_none_or(|max| max > 0 && (self.used == 0 || self.used.saturating_add(amount) <= max))
    }

    fn add(&mut self, amount: u64) {
        self.used = self.used.saturating_add(amount);
    }
}

/// The quotas of one shard.
#[derive(Default)]
pub struct ShardQuota {
    bytes: Window,
    writes: Window,
    reads: Window,
    read_bytes: Window,
}

impl ShardQuota {
    /// Takes a write of `raw_bytes`; fails with `ShardWriteQuotaExceed` if it is over a quota.
    pub fn write(
        &mut self,
        shard: u32,
        raw_bytes: u64,
        moment: Moment,
        switches: &Switches,
    ) -> Result<(), Refusal> {
        let now = moment.steady;
        let fits = self.bytes.fits(now, SECOND, raw_bytes, switches.shard_bytes_per_s)
            & self.writes.fits(now, SECOND, 1, switches.shard_writes_per_s);
        if !fits {
            let message = format!("shard write quota exceed, shard: {shard}");
            return Err(Refusal::new(Code::ShardWriteQuotaExceed, message));
        }
        self.bytes.add(raw_bytes);
        self.writes.add(1);
        Ok(())
    }

    /// Takes a read whose size is not known yet; fails with `ShardReadQuotaExceed`.
    pub fn read(&mut self, moment: Moment, switches: &Switches) -> Result<(), Refusal> {
        let now = moment.steady;
        if !self.read_bytes.fits(now, SECOND, 1, switches.shard_read_bytes_per_s) {
            let message = "shard read bytes exceed quota limits";
            return Err(Refusal::new(Code::ShardReadQuotaExceed, message));
        }
        if !self.reads.fits(now, SECOND, 1, switches.shard_reads_per_s) {
            let message = "shard read qps exceed quota limits";
            return Err(Refusal::new(Code::ShardReadQuotaExceed, message));
        }
        self.reads.add(1);
        Ok(())
    }

    /// Counts what a read has given.
    pub fn given(&mut self, bytes: u64) {
        self.read_bytes.add(bytes);
    }
}

/// The quotas of one project, over all of its logstores.
#[derive(Default)]
pub struct ProjectQuota(Mutex<ProjectWindows>);

#[derive(Default)]
struct ProjectWindows {
    bytes: Window,
    writes: Window,
    reads: Window,
}

impl ProjectQuota {
    /// Takes a write of `raw_bytes`; fails with `WriteQuotaExceed` if it is over a quota.
    pub fn write(
        &self,
        raw_bytes: u64,
        moment: Moment,
        switches: &Switches,
    ) -> Result<(), Refusal> {
        let now = moment.steady;
        let mut windows = lock(&self.0);
        let refuse = |what: &str, max: Option<u64>| {
            let message = format!("Project write quota exceed: {what}: {}", max.unwrap_or(0));
            Err(Refusal::new(Code::WriteQuotaExceed, message))
        };
        if !windows.bytes.fits(now, MINUTE, raw_bytes, switches.project_bytes_per_min) {
            return refuse("inflow", switches.project_bytes_per_min);
        }
        if !windows.writes.fits(now, MINUTE, 1, switches.project_writes_per_min) {
            return refuse("qps", switches.project_writes_per_min);
        }
        windows.bytes.add(raw_bytes);
        windows.writes.add(1);
        Ok(())
    }

    /// Takes a read; fails with `ReadQuotaExceed`.
    pub fn read(&self, moment: Moment, switches: &Switches) -> Result<(), Refusal> {
        let mut windows = lock(&self.0);
        if !windows.reads.fits(moment.steady, MINUTE, 1, switches.project_reads_per_min) {
            return Err(Refusal::new(Code::ReadQuotaExceed, "Project read quota exceed: qps"));
        }
        windows.reads.add(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_takes_its_quota_and_the_next_one_again() {
        let start = Moment::at(0);
        let later = |ms| Moment { steady: start.steady + Duration::from_millis(ms), ..start };
        let switches = Switches {
            shard_bytes_per_s: Some(100),
            shard_writes_per_s: Some(3),
            ..Switches::default()
        };
        let mut quota = ShardQuota::default();
        let mut write = |bytes, ms| quota.write(0, bytes, later(ms), &switches).is_ok();
        assert!(write(60, 0));
        assert!(!write(41, 500), "bytes");
        assert!(write(20, 600) && write(20, 700));
        assert!(!write(0, 999), "writes");
        assert!(write(1000, 1000), "a new second takes any one write");
        assert!(!write(1, 1001));
        assert!(write(1, 2000));
    }

    #[test]
    fn a_project_counts_over_a_minute() {
        let start = Moment::at(0);
        let later = |s| Moment { steady: start.steady + Duration::from_secs(s), ..start };
        let switches = Switches { project_writes_per_min: Some(2), ..Switches::default() };
        let quota = ProjectQuota::default();
        assert!(quota.write(1, later(0), &switches).is_ok());
        assert!(quota.write(1, later(30), &switches).is_ok());
        let refusal = quota.write(1, later(59), &switches).unwrap_err();
        assert_eq!((refusal.status, refusal.code.as_str()), (403, "WriteQuotaExceed"));
        assert!(quota.write(1, later(60), &switches).is_ok());
    }

    #[test]
    fn reads_are_refused_once_the_bytes_were_given() {
        let moment = Moment::at(0);
        let switches = Switches { shard_read_bytes_per_s: Some(10), ..Switches::default() };
        let mut quota = ShardQuota::default();
        quota.read(moment, &switches).unwrap();
        quota.given(10);
        assert_eq!(quota.read(moment, &switches).unwrap_err().code, "ShardReadQuotaExceed");
    }
}
