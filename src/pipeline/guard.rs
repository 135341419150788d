//! Guards: who may send, how fast, with how much memory, and when Postgres must be left alone.

pub mod budget;
pub mod epoch;
pub mod health_gate;
pub mod live_writer;
pub mod pace;
pub mod probe;
pub mod signing_lease;
