//! The worlds that are walked through: what may go wrong in them, and which bug is put in.

use crate::state::ROWS;

/// What may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Crash,
    Pause,
    LostAnswer,
    /// A request is taken, and stored later.
    Late,
    Duplicate,
    LostCommit,
    /// A shard is split, and the child knows no number.
    Split,
    Failover,
    RowChanges,
    RowVanishes,
}

/// Bugs that can be put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// After InvalidSequenceId the batch goes out on a new lane at once.
    NewLane,
    /// Who wakes up signs with the date of now, whatever the ledger knows.
    WokenSignsNow,
    /// The range's position moves when a batch is acknowledged.
    PositionOnAcknowledgement,
    /// A hold stays open when a batch takes its row.
    HoldLeftOpen,
    /// What has not come when its signature is over is given up unseen.
    NoSecondLook,
    /// What was acknowledged and is not seen does not count.
    ClockAlone,
    /// A look knows only of a lag that it has seen itself.
    LagForgotten,
    /// Rows are not looked up in the ledger, and no entry keeps a row out of two batches.
    RowsNotLookedUp,
}

/// How a row is in the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Finished,
    Running,
    /// There is none.
    Nowhere,
}

/// A world to walk through.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) name: &'static str,
    /// So much goes wrong at most.
    pub(crate) faults: u8,
    pub(crate) kinds: &'static [Fault],
    /// Whether SLS refuses repeated numbers, and was seen to.
    pub(crate) proven: bool,
    pub(crate) processes: usize,
    /// Whether readers may see nothing new for as long as they like, while something is missing
    /// that was acknowledged.
    pub(crate) lag: bool,
    pub(crate) rows: [At; ROWS],
    pub(crate) has_second_pass: bool,
    pub(crate) bugs: &'static [Bug],
}
