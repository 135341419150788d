//! What the model knows at a moment: rows, SLS, the ledger, and two processes.
//!
//! A batch holds one row. Times are ages in seconds, counted on SLS's clock; time passes in ticks.

/// Rows of the table, in the order of its key.
pub(crate) const ROWS: usize = 2;
/// Batches ever made; a state that would need more is not looked into.
pub(crate) const BATCHES: usize = 5;
/// Lanes ever opened; as above.
pub(crate) const LANES: usize = 6;
/// Requests on their way at a time; as above.
pub(crate) const REQUESTS: usize = 3;
/// A shard before its split, and the child that has its keys afterwards.
pub(crate) const SHARDS: usize = 2;

/// An age: seconds since something was; `None`: it was not.
pub(crate) type Age = Option<i8>;

/// Older things are all alike: every deadline is over.
pub(crate) const OLD_S: i8 = 30;

/// Nobody: the first process has number 1.
pub(crate) const NOBODY: u8 = 0;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// How much may still go wrong.
    pub(crate) faults_left: u8,
    pub(crate) rows: [Row; ROWS],
    pub(crate) sls: Sls,
    pub(crate) ledger: Ledger,
    /// The ledger of a replica that follows no more.
    pub(crate) replica: Option<Box<Ledger>>,
    pub(crate) has_failed_over: bool,
    pub(crate) processes: [Process; 2],
    /// Row and version of each batch, ledger or not.
    pub(crate) made: [Option<(u8, u8)>; BATCHES],
    pub(crate) lanes_opened: u8,
    pub(crate) processes_begun: u8,
    /// An intent's COMMIT that is still on its way to the ledger.
    pub(crate) commit: Option<(Intent, u8)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Row {
    pub(crate) version: u8,
    pub(crate) is_settled: bool,
    pub(crate) is_there: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Sls {
    pub(crate) shards: [Shard; SHARDS],
    pub(crate) is_split: bool,
    /// By lane: the last number that SLS remembers, and since when.
    pub(crate) numbers: [(u8, i8); LANES],
    pub(crate) requests: [Option<Request>; REQUESTS],
}

/// Groups of a shard at most: a copy too many is a bug already.
const GROUPS: usize = BATCHES + 2;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Shard {
    batches: [u8; GROUPS],
    stored: u8,
    /// How many groups readers see.
    pub(crate) visible: u8,
}

impl Shard {
    /// The batches of its groups, in their order.
    pub(crate) fn groups(&self) -> &[u8] {
        &self.batches[..usize::from(self.stored)]
    }

    pub(crate) fn push(&mut self, batch: u8) {
        self.batches[usize::from(self.stored)] = batch;
        self.stored += 1;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Request {
    pub(crate) batch: u8,
    pub(crate) lane: u8,
    pub(crate) number: u8,
    pub(crate) signed: i8,
    /// How long ago SLS has taken it and recorded its number, to store it later.
    pub(crate) taken: Age,
    /// The thread that waits for its answer.
    pub(crate) waiter: Option<(u8, u8)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Ledger {
    pub(crate) pass: u8,
    /// Rows before it were looked at in this pass.
    pub(crate) position: u8,
    /// The processes that own the range of the pass, and that of the holds.
    pub(crate) owners: [u8; 2],
    pub(crate) holds: [Hold; ROWS],
    pub(crate) batches: [Option<Batch>; BATCHES],
    /// How far each shard was read.
    pub(crate) read: [u8; SHARDS],
    /// The processes that have neither ended nor were found dead.
    pub(crate) alive: [u8; 2],
    pub(crate) is_stopped: bool,
    pub(crate) timeline: u8,
    pub(crate) timeline_known: u8,
    /// How long ago an audit's fence was made.
    pub(crate) audit: Age,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) enum Hold {
    #[default]
    None,
    Open,
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum BatchState {
    Intent,
    Stored,
    Proved,
    Abandoned,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Batch {
    pub(crate) state: BatchState,
    pub(crate) owner: u8,
    pub(crate) sent: Option<Sent>,
    pub(crate) report: Report,
    /// How long ago it was known to be stored.
    pub(crate) stored: Age,
    /// How often it was found.
    pub(crate) seen: u8,
    /// How long ago it was found, if that was long after it was known to be stored.
    pub(crate) found_late: Age,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Sent {
    pub(crate) lane: u8,
    pub(crate) number: u8,
    pub(crate) signed: i8,
    /// Whether the split was known when cursors were taken.
    pub(crate) after_split: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Report {
    pub(crate) unknowns: u8,
    pub(crate) all_refused: bool,
    pub(crate) number_used: Age,
}

/// A batch as a step intends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Intent {
    pub(crate) range: Range,
    pub(crate) row: u8,
    pub(crate) batch: u8,
    pub(crate) sent: Sent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Range {
    Pass,
    Holds,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    /// `NOBODY`: it does not run.
    pub(crate) id: u8,
    pub(crate) is_paused: bool,
    /// It has not read yet what has become visible since the last run.
    pub(crate) is_starting: bool,
    /// Whether something acknowledged was missing when it started, and when it was there.
    pub(crate) was_behind: bool,
    pub(crate) behind: Age,
    /// How long ago it has looked for others.
    pub(crate) looked: i8,
    pub(crate) timeline: u8,
    pub(crate) threads: [Thread; 2],
    /// Each thread's lane, and the last number of it.
    pub(crate) lanes: [(u8, u8); 2],
}

/// The thread that uploads, and the one that settles.
pub(crate) const UPLOADER: u8 = 0;
pub(crate) const RESOLVER: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Thread {
    Idle,
    /// A row was looked at and found fit.
    Ready {
        range: Range,
        row: u8,
        version: u8,
    },
    /// The COMMIT of a step has no answer.
    Uncertain(Intent),
    Sending(Sending),
    Waiting(Sending),
    /// SLS has said that it is stored.
    Stored {
        batch: u8,
    },
    GivingUp(Sending),
    /// The resolver has claimed it.
    Open {
        batch: u8,
        look: Look,
        is_repeatable: bool,
    },
    /// `unseen`: a bit for each batch that was acknowledged and not seen when it began.
    Looking {
        batch: u8,
        look: Look,
        read_from: i8,
        ends: [u8; SHARDS],
        unseen: u8,
    },
    /// Nothing of it is there.
    Missing {
        batch: u8,
        look: Look,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Sending {
    pub(crate) batch: u8,
    pub(crate) sent: Sent,
    pub(crate) unknown_since: Age,
    pub(crate) report: Report,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Look {
    pub(crate) began: Age,
    pub(crate) behind: Age,
}

impl Process {
    pub(crate) const NONE: Self = Self {
        id: NOBODY,
        is_paused: false,
        is_starting: false,
        was_behind: false,
        behind: None,
        looked: 0,
        timeline: 0,
        threads: [Thread::Idle; 2],
        lanes: [(0, 0); 2],
    };

    pub(crate) fn runs(&self) -> bool {
        self.id != NOBODY && !self.is_paused
    }
}

impl State {
    pub(crate) fn new(faults: u8, rows: [Row; ROWS]) -> Self {
        Self {
            faults_left: faults,
            rows,
            sls: Sls {
                shards: Default::default(),
                is_split: false,
                numbers: [(0, 0); LANES],
                requests: [None; REQUESTS],
            },
            ledger: Ledger {
                pass: 1,
                position: 0,
                owners: [NOBODY; 2],
                holds: [Hold::None; ROWS],
                batches: Default::default(),
                read: [0; SHARDS],
                alive: [NOBODY; 2],
                is_stopped: false,
                timeline: 0,
                timeline_known: 0,
                audit: None,
            },
            replica: None,
            has_failed_over: false,
            processes: [Process::NONE, Process::NONE],
            made: [None; BATCHES],
            lanes_opened: 0,
            processes_begun: 0,
            commit: None,
        }
    }

    /// How often a row is in SLS.
    pub(crate) fn copies(&self, row: usize) -> usize {
        let groups = self.sls.shards.iter().flat_map(Shard::groups);
        groups
            .filter(|batch| self.made[**batch as usize].is_some_and(|of| of.0 as usize == row))
            .count()
    }

    /// The live batches of the ledger that have the row.
    pub(crate) fn live(&self, row: u8) -> impl Iterator<Item = (u8, &Batch)> {
        let all = (0..).zip(&self.ledger.batches);
        all.filter_map(move |(nth, batch)| {
            let batch = batch.as_ref().filter(|batch| batch.state != BatchState::Abandoned)?;
            self.made[nth as usize].is_some_and(|of| of.0 == row).then_some((nth, batch))
        })
    }

    /// Whether everything that was acknowledged was seen.
    pub(crate) fn unseen(&self) -> impl Iterator<Item = &Batch> {
        let all = self.ledger.batches.iter().flatten();
        all.filter(|batch| batch.state == BatchState::Stored && batch.seen == 0)
    }

    /// Whether all that readers see was read.
    pub(crate) fn is_caught_up(&self) -> bool {
        let ends = self.sls.shards.iter().map(|shard| shard.visible);
        self.ledger.read.iter().zip(ends).all(|(read, end)| *read >= end)
    }

    pub(crate) fn ends(&self) -> [u8; SHARDS] {
        std::array::from_fn(|nth| self.sls.shards[nth].visible)
    }

    /// Lets so much time go by, for all ages.
    pub(crate) fn age(&mut self, by_s: i8) {
        let older = |age: &mut i8| *age = (*age + by_s).min(OLD_S);
        let older_if = |age: &mut Age| {
            if let Some(age) = age {
                *age = (*age + by_s).min(OLD_S);
            }
        };
        self.sls
            .numbers
            .iter_mut()
            .filter(|number| number.0 > 0)
            .for_each(|number| older(&mut number.1));
        for request in self.sls.requests.iter_mut().flatten() {
            older(&mut request.signed);
            older_if(&mut request.taken);
        }
        self.ledger.age(&older);
        if let Some(replica) = &mut self.replica {
            replica.age(&older);
        }
        if let Some((intent, _)) = &mut self.commit {
            older(&mut intent.sent.signed);
        }
        for process in self.processes.iter_mut().filter(|process| process.id != NOBODY) {
            older(&mut process.looked);
            older_if(&mut process.behind);
            for thread in &mut process.threads {
                thread.age(&older, &older_if);
            }
        }
    }
}

impl Ledger {
    fn age(&mut self, older: &impl Fn(&mut i8)) {
        for batch in self.batches.iter_mut().flatten() {
            if let Some(sent) = &mut batch.sent {
                older(&mut sent.signed);
            }
            batch.report.number_used.iter_mut().for_each(older);
            batch.stored.iter_mut().for_each(older);
            batch.found_late.iter_mut().for_each(older);
        }
        self.audit.iter_mut().for_each(older);
    }
}

impl Thread {
    fn age(&mut self, older: &impl Fn(&mut i8), older_if: &impl Fn(&mut Age)) {
        match self {
            Self::Uncertain(intent) => older(&mut intent.sent.signed),
            Self::Sending(sending) | Self::Waiting(sending) | Self::GivingUp(sending) => {
                older(&mut sending.sent.signed);
                older_if(&mut sending.unknown_since);
                older_if(&mut sending.report.number_used);
            }
            Self::Open { look, .. } | Self::Missing { look, .. } => look.age(older_if),
            Self::Looking { look, read_from, .. } => {
                look.age(older_if);
                older(read_from);
            }
            Self::Idle | Self::Ready { .. } | Self::Stored { .. } => {}
        }
    }
}

impl Look {
    fn age(&mut self, older_if: &impl Fn(&mut Age)) {
        older_if(&mut self.began);
        older_if(&mut self.behind);
    }
}
