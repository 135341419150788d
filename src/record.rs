//! What a row and a log are, without I/O: the words that the layers above share.

pub mod day;
pub mod digest;
pub mod fingerprint;
pub mod hold;
pub mod key;
pub mod row_set;
pub mod seal;
pub mod table;
pub mod timestamp;
