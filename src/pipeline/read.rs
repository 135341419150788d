//! Reads: from a window of the source to packed batches.

pub mod assemble;
pub mod batching;
pub mod dry;
pub mod live_look;
pub mod preparer;
pub mod range_scan;
pub mod range_size;
pub mod recount;
pub mod scanner;
pub mod window;
