//! Sends: from a packed batch to what SLS has said of it.

pub mod age;
pub mod canary;
pub mod lane_keeper;
pub mod lanes;
pub mod sender;
pub mod uploader;
