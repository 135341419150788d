//! How a command ends: exit codes, and errors that bring theirs along.

use crate::ledger::process::AlreadyRunning;
use crate::ledger::stop::{Stopped, WrongSource};
use crate::pipeline::read::window::Refusal;
use crate::pipeline::send::canary::Unkept;

/// The exit codes; stable, for scripts and schedulers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done and equal.
    Done = 0,
    /// The command line or a setting is wrong.
    Usage = 2,
    /// Postgres, SLS or the ledger is not ready; nothing was sent.
    Preflight = 3,
    /// What SLS holds differs from what it should hold, or Postgres has rows that were not seen.
    Difference = 4,
    /// Done, but SLS refused rows, which are held.
    Refused = 5,
    /// Another run holds the ledger.
    Busy = 6,
    /// Failed.
    Failed = 70,
    /// Stopped with work left: run the same command again.
    Unfinished = 75,
}

/// An error and the exit code it ends with.
#[derive(Debug)]
pub struct Ended {
    pub exit: Exit,
    pub error: anyhow::Error,
}

impl From<anyhow::Error> for Ended {
    fn from(error: anyhow::Error) -> Self {
        let is_lost = |unkept: &Unkept| unkept.was_acknowledged;
        let exit = match &error {
            error if error.is::<AlreadyRunning>() => Exit::Busy,
            error if error.is::<Stopped>() || error.is::<WrongSource>() => Exit::Preflight,
            error if error.downcast_ref().is_some_and(is_lost) => Exit::Difference,
            _ => Exit::Failed,
        };
        Self { exit, error }
    }
}

impl From<Refusal> for Ended {
    fn from(refusal: Refusal) -> Self {
        Self { exit: Exit::Preflight, error: refusal.into() }
    }
}

/// Gives an error another exit code than [`Exit::Failed`].
pub trait OrExit<T> {
    /// Ends with `exit` on an error that has no code of its own.
    fn or_exit(self, exit: Exit) -> Result<T, Ended>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T, Ended> {
        self.map_err(|error| {
            let ended = Ended::from(error.into());
            if ended.exit == Exit::Failed { Ended { exit, ..ended } } else { ended }
        })
    }
}
