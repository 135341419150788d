//! The upload: rows → logs → batches → lanes → ledger, and the tail reader beside it.
//!
//! ```text
//! worker:  look:    claim a range ─► look at the next rows ─► cut a batch
//!                      ▼
//!          prepare: read, convert, pack
//!                      ▼
//!          upload:  intent in the ledger ─► PutLogs ─► acknowledge
//! tail:    pull what is stored ─► sum up by tag ─► compare with the ledger ─► proved
//! settler: what became of it is not known ─► wait, look, send again · halve · replace
//! ```
//!
//! The stages of a worker go on beside each other, with one request in flight; several workers keep
//! Postgres, the processor and SLS busy at once. Channels with limits and a budget bound the memory.

pub mod age;
pub mod assemble;
pub mod audit;
pub mod budget;
pub mod canary;
pub mod cut;
pub mod deliver;
pub mod dry;
pub mod epoch;
pub mod feed;
pub mod follow;
pub mod health;
pub mod lane;
pub mod lookout;
pub mod pace;
pub mod patience;
pub mod probe;
pub mod progress;
pub mod settle;
pub mod settler;
pub mod stop;
pub mod window;
pub mod worker;
