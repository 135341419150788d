//! The bytes that SLS's HTTP interface speaks: protobuf, compression, signatures, error bodies.
//!
//! Client and simulator share this module, so running one against the other cannot test it:
//! `tests/data/sls.json`, made with the vendor's SDK, pins it from outside.

pub mod compression;
pub mod error_body;
pub mod log_group;
pub mod proto;
pub mod sign;
