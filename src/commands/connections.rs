//! How many connections to Postgres a process opens: few for the ledger, whose statements are a matter
//! of milliseconds, the others for reading, and together never more than the operator allows.

use crate::commands::run_settings::Workers;
use crate::commands::setup::PostgresSettings;
use crate::pg::pool::{Bound, PoolSize};

/// What a command would use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Tasks that read the source at the same time.
    readers: u32,
    /// Connections to the source that keep them busy.
    source: u32,
    /// Tasks that write the ledger at the same time.
    writers: u32,
    /// Connections to the ledger that keep them busy; 0: it is not opened.
    ledger: u32,
}

/// The pools of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pools {
    pub source: PoolSize,
    pub ledger: PoolSize,
}

impl Demand {
    /// Content of four batches and a look through the table are read beside each other.
    pub const VERIFY: Self = Self { readers: 6, source: 6, writers: 8, ledger: 4 };

    /// `run` with so many workers. Two stages of each read; they, the watch, the tail reader, the
    /// resolver and the heartbeat write. Most of the time a worker waits for SLS, and one that is
    /// added later all the more: it brings no connection of its own.
    pub fn run(workers: Workers) -> Self {
        let Workers { at_first, at_most } = workers;
        Self {
            readers: 2 * at_most + 2,
            source: at_first + 2,
            writers: 2 * at_most + 4,
            ledger: 2 + at_first / 4,
        }
    }

    /// `run --dry-run` with so many workers.
    pub fn dry_run(workers: u32) -> Self {
        Self { readers: workers + 1, source: workers + 1, writers: 0, ledger: 0 }
    }

    /// How many connections a process opens where there is room.
    pub fn connections(self) -> u32 {
        self.source + self.ledger
    }

    /// The pools; with at most `asked` connections together, or by what the servers have left.
    pub fn pools(self, postgres: &PostgresSettings, asked: Option<u32>) -> Pools {
        let (source, ledger) = match asked {
            None => (Bound::Share { wanted: self.source }, Bound::Share { wanted: self.ledger }),
            Some(asked) => {
                let ledger = (asked / 4).max(1).min(self.ledger);
                let source = (asked - ledger).clamp(1, self.readers);
                let beside = if is_same_server(postgres) { ledger } else { 0 };
                (
                    Bound::Asked { connections: source, beside },
                    Bound::Asked { connections: ledger, beside: 0 },
                )
            }
        };
        Pools {
            source: PoolSize { users: self.readers, bound: source },
            ledger: PoolSize { users: self.writers, bound: ledger },
        }
    }
}

fn is_same_server(postgres: &PostgresSettings) -> bool {
    let (source, ledger) = (postgres.source.login(), postgres.ledger.login());
    (&source.host, source.port) == (&ledger.host, ledger.port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{Address, Login, Tls};

    fn at(port: u16) -> Address {
        let text = || "dify".to_owned();
        Address::new(Login {
            host: text(),
            port,
            user: text(),
            password: None,
            database: text(),
            tls: Tls::default(),
            options: Vec::new(),
        })
    }

    #[test]
    fn pools_together_have_at_most_what_was_asked_for() {
        let together = PostgresSettings { source: at(1), ledger: at(1) };
        let apart = PostgresSettings { source: at(1), ledger: at(2) };
        for workers in [1, 8, 64] {
            for asked in 2..200 {
                let Pools { source, ledger } =
                    Demand::run(Workers::exactly(workers)).pools(&together, Some(asked));
                let (Bound::Asked { connections, beside }, Bound::Asked { connections: own, .. }) =
                    (source.bound, ledger.bound)
                else {
                    panic!("{source:?} {ledger:?}");
                };
                assert_eq!(beside, own);
                assert!(connections > 0 && own > 0, "{workers} {asked}");
                assert!(connections + own <= asked, "{workers} {asked}");
                assert!(connections <= source.users, "nobody would use them");
            }
        }
        let Pools { source, .. } = Demand::run(Workers::exactly(8)).pools(&apart, Some(8));
        assert_eq!(source.bound, Bound::Asked { connections: 6, beside: 0 });
    }

    #[test]
    fn a_process_takes_fourteen_however_many_workers_are_added() {
        assert_eq!(Demand::run(Workers::BY_NEED).connections(), 14);
        let postgres = PostgresSettings { source: at(1), ledger: at(1) };
        let pools = Demand::run(Workers::BY_NEED).pools(&postgres, None);
        assert_eq!(pools.source.bound, Bound::Share { wanted: 10 });
        assert_eq!(pools.ledger.bound, Bound::Share { wanted: 4 });
        assert_eq!((pools.source.users, pools.ledger.users), (130, 132), "all stand in line");
    }
}
