//! Processes that may send: one at a time, unless it joins; each with a lease and a number.
//!
//! A lease row, not a session lock: PgBouncer's transaction mode does not keep sessions. A process
//! that was killed on this machine is seen to be dead at once; elsewhere its lease must run out.

use std::ops::Range;
use std::time::Duration;

use anyhow::Context as _;
use rand::RngExt as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::pg::{self, Tx};

/// How long a process that says nothing counts as alive.
pub const LEASE: Duration = Duration::from_secs(60);

/// How often a process says that it is alive.
pub const HEARTBEAT: Duration = Duration::from_secs(10);

/// The process's lease had run out, and another process has ended it.
#[derive(Debug, thiserror::Error)]
#[error("the ledger took this process for dead; others go on with its work")]
pub struct TakenForDead;

/// What tells a process on this machine from all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub host: String,
    pub boot_id: String,
    pub pid: i64,
    /// Clock ticks since boot, from `/proc`; 0 where there is none.
    pub pid_started: i64,
}

impl Identity {
    /// This process.
    pub fn own() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        // Containers of one machine may share its name and boot id, but not process numbers.
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let boot_id =
            format!("{} {}", read("/proc/sys/kernel/random/boot_id"), namespace.display());
        let pid = i64::from(std::process::id());
        Self {
            host: read("/proc/sys/kernel/hostname"),
            boot_id,
            pid,
            pid_started: start_of(pid).unwrap_or(0),
        }
    }

    /// Whether this process, seen from the machine of `here`, is certainly dead.
    fn is_dead(&self, here: &Self) -> bool {
        let same_machine =
            self.boot_id.len() > 1 && self.boot_id == here.boot_id && self.host == here.host;
        // Where others' processes are hidden (hidepid), a process that is not seen may live.
        let sees_others = start_of(1).is_some();
        // Process numbers are used again: the start time tells whether it is still the same one.
        same_machine
            && sees_others
            && here.pid_started > 0
            && start_of(self.pid) != Some(self.pid_started)
    }
}

/// The start time of a process of this machine; `None` when there is no such process. A zombie is
/// none: it waits to be buried and does nothing more.
fn start_of(pid: i64) -> Option<i64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; state is the first field behind it, the start
    // time the twentieth (proc(5), fields 3 and 22).
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let started = fields.nth(18)?.parse().ok()?;
    (state != "Z" && state != "X").then_some(started)
}

/// The timeouts (s) that consumer groups are given, in place of a mark that SLS has no room for:
/// anything that a consumer might ask for.
pub const STAMPS: Range<u32> = 300..3900;

/// This process, as it stands in the ledger.
#[derive(Debug, Clone)]
pub struct Process {
    pub id: Uuid,
    pub epoch: i64,
    /// Random, from [`STAMPS`]: tells this process's consumer groups from those of a copy.
    pub stamp: u32,
}

/// Another process holds the ledger.
#[derive(Debug, thiserror::Error)]
#[error("another run is at work: pid {pid} on {host}, since {since}, last heard of {ago_s} s ago")]
pub struct AlreadyRunning {
    pub host: String,
    pub pid: i64,
    pub since: String,
    pub ago_s: i64,
}

impl Ledger {
    /// Enters this process. Unless `join`, fails with [`AlreadyRunning`] while another lives.
    pub async fn enter(&self, join: bool) -> anyhow::Result<Process> {
        let own = Identity::own();
        let mut tx = self.begin().await?;
        // Two that enter at once stand in line here.
        let epoch: i64 =
            pg::statement("UPDATE sls_backfill.ledger SET epoch = epoch + 1 RETURNING epoch")
                .fetch_one(&mut *tx)
                .await
                .context("take a number in the ledger")?
                .try_get("epoch")?;
        let alive = bury_the_dead(&mut tx, &own).await?;
        if let (Some(other), false) = (alive, join) {
            return Err(other.into());
        }
        let (id, stamp) = (Uuid::new_v4(), rand::rng().random_range(STAMPS));
        pg::statement(
            "INSERT INTO sls_backfill.process \
             (id, epoch, host, boot_id, pid, pid_started, joined, version, lease_until, stamp) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, \
             clock_timestamp() + make_interval(secs => $9), $10)",
        )
        .bind(id)
        .bind(epoch)
        .bind(own.host)
        .bind(own.boot_id)
        .bind(own.pid)
        .bind(own.pid_started)
        .bind(join)
        .bind(env!("CARGO_PKG_VERSION"))
        .bind(LEASE.as_secs_f64())
        .bind(i32::try_from(stamp)?)
        .execute(&mut *tx)
        .await
        .context("enter the ledger")?;
        tx.commit().await.context("enter the ledger")?;
        Ok(Process { id, epoch, stamp })
    }

    /// Says that the process lives; renews its own lease and those of its ranges.
    ///
    /// Fails with [`TakenForDead`] when the process was found dead meanwhile.
    pub async fn heartbeat(&self, process: &Process) -> anyhow::Result<()> {
        let mut tx = self.begin_relaxed().await?;
        let renewed = pg::statement(
            "UPDATE sls_backfill.process SET lease_until = clock_timestamp() + \
             make_interval(secs => $2) WHERE id = $1 AND ended_at IS NULL",
        )
        .bind(process.id)
        .bind(LEASE.as_secs_f64())
        .execute(&mut *tx)
        .await
        .context("renew the lease")?;
        if renewed.rows_affected() == 0 {
            return Err(TakenForDead.into());
        }
        pg::statement(
            "UPDATE sls_backfill.range SET lease_until = clock_timestamp() + \
             make_interval(secs => $2) WHERE owner = $1 AND state = 'open'",
        )
        .bind(process.id)
        .bind(LEASE.as_secs_f64())
        .execute(&mut *tx)
        .await
        .context("renew the leases of the ranges")?;
        // Whoever lives takes over from those who have died meanwhile.
        bury_the_dead(&mut tx, &Identity::own()).await?;
        tx.commit().await.context("renew the lease")
    }

    /// Leaves: the process's ranges and lanes are free from now on.
    pub async fn leave(&self, process: &Process) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        end(&mut tx, process.id).await?;
        tx.commit().await.context("leave the ledger")
    }
}

/// Ends every process whose lease has run out or that is dead on this machine; gives one that
/// lives, a main one before one that has joined.
async fn bury_the_dead(tx: &mut Tx, own: &Identity) -> anyhow::Result<Option<AlreadyRunning>> {
    let rows = pg::statement(
        "SELECT id, host, boot_id, pid, pid_started, lease_until < clock_timestamp() AS expired, \
         to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS \"UTC\"') AS since, \
         extract(epoch FROM clock_timestamp() - lease_until)::int8 + $1 AS ago_s \
         FROM sls_backfill.process WHERE ended_at IS NULL ORDER BY joined DESC, epoch",
    )
    .bind(i64::try_from(LEASE.as_secs())?)
    .fetch_all(&mut **tx)
    .await
    .context("look for other processes in the ledger")?;
    // Nobody resolves what an ended process still owns.
    pg::statement(
        "UPDATE sls_backfill.batch b SET owner = NULL FROM sls_backfill.process p \
         WHERE b.state = 'intent' AND p.id = b.owner AND p.ended_at IS NOT NULL",
    )
    .execute(&mut **tx)
    .await
    .context("free the batches of processes that have ended")?;
    let mut alive = None;
    for row in rows {
        let identity = Identity {
            host: row.try_get("host")?,
            boot_id: row.try_get("boot_id")?,
            pid: row.try_get("pid")?,
            pid_started: row.try_get("pid_started")?,
        };
        if row.try_get("expired")? || identity.is_dead(own) {
            end(tx, row.try_get("id")?).await?;
        } else {
            alive = Some(AlreadyRunning {
                host: identity.host,
                pid: identity.pid,
                since: row.try_get("since")?,
                ago_s: row.try_get("ago_s")?,
            });
        }
    }
    Ok(alive)
}

async fn end(tx: &mut Tx, process_id: Uuid) -> anyhow::Result<()> {
    for sql in [
        "UPDATE sls_backfill.process SET ended_at = coalesce(ended_at, clock_timestamp()) \
         WHERE id = $1",
        "UPDATE sls_backfill.range SET lease_until = clock_timestamp(), owner = NULL, \
         token = token + 1 WHERE owner = $1 AND state = 'open'",
        "UPDATE sls_backfill.lane SET closed_at = clock_timestamp() \
         WHERE process_id = $1 AND closed_at IS NULL",
        "UPDATE sls_backfill.batch SET owner = NULL WHERE state = 'intent' AND owner = $1",
    ] {
        pg::statement(sql)
            .bind(process_id)
            .execute(&mut **tx)
            .await
            .context("end a process in the ledger")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_another_of_its_number_is_dead() {
        let own = Identity::own();
        assert!(own.pid_started > 0);
        assert!(!own.is_dead(&own));
        let earlier = Identity { pid_started: own.pid_started - 1, ..own.clone() };
        assert!(earlier.is_dead(&own));
        let elsewhere = Identity { host: "elsewhere".to_owned(), ..earlier };
        assert!(!elsewhere.is_dead(&own), "nobody can tell from here");
    }
}
