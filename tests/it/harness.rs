//! What every integration test stands on: a Postgres, a fresh database, the simulator, the tool.
//!
//! ```text
//! let database = Database::of_shape("dify-1.12");
//! let simulator = Simulator::start();
//! Tool::new(["run"]).envs(database.env()).envs(simulator.env()).run().exits(0);
//! ```
//!
//! Everything listens on a port of its own and is gone when its value is dropped; what the shared
//! cluster leaves is removed when the test process ends, however it ends.

pub(crate) mod bouncer;
pub(crate) mod cluster;
pub(crate) mod database;
#[cfg(feature = "simulator")]
pub(crate) mod fixture;
pub(crate) mod golden;
pub(crate) mod http;
pub(crate) mod needs;
pub(crate) mod session;
#[cfg(feature = "simulator")]
pub(crate) mod signed;
pub(crate) mod simulator;
pub(crate) mod tool;

use std::time::{Duration, Instant};

/// How long a test waits for what must come: a minute of a machine that has nothing else to do, twice,
/// because all tests share its cores.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Does `work` with each of `cases` at the same time: most of what tests do is to wait. Fails if one
/// of them does.
pub(crate) fn at_once<T: Send>(cases: impl IntoIterator<Item = T>, work: impl Fn(T) + Sync) {
    let work = &work;
    std::thread::scope(|scope| {
        for case in cases {
            scope.spawn(move || work(case));
        }
    });
}

/// Asks `ready` every 5 ms until it answers; panics with `what` after `deadline`.
#[track_caller]
pub(crate) fn poll<T>(what: &str, deadline: Duration, mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(answer) = ready() {
            return answer;
        }
        assert!(Instant::now() < end, "waited {deadline:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
