//! What a row and a log are, without I/O: the words that the layers above share.

pub mod digest;
pub mod hold;
pub mod key;
pub mod seal;
pub mod table;
pub mod timestamp;
