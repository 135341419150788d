//! The upload: rows → logs → batches → lanes → ledger, and the tail reader beside it.
//!
//! ```text
//! worker:  claim a range ─► look at the next rows ─► cut a batch ─► read, convert, pack
//!             ▲                                                          │
//!             └── range done ◄── acknowledge ◄── PutLogs ◄── intent in the ledger
//! tail:    pull what is stored ─► sum up by tag ─► compare with the ledger ─► proved
//! settler: what became of it is not known ─► wait, look, send again · halve · replace
//! ```
//!
//! A worker does one thing after the other, with one request in flight; several of them keep
//! Postgres, the processor and SLS busy at once, and bound the memory.

pub mod assemble;
pub mod audit;
pub mod cut;
pub mod deliver;
pub mod dry;
pub mod epoch;
pub mod feed;
pub mod follow;
pub mod lane;
pub mod pace;
pub mod patience;
pub mod probe;
pub mod progress;
pub mod settle;
pub mod settler;
pub mod stop;
pub mod window;
pub mod worker;
