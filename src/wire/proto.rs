//! SLS's protobuf messages as prost types, for whoever decodes: the simulator and the tests.
//!
//! prost is lenient where SLS is not: a missing required field decodes as its default. It is also
//! strict where SLS is not: one value that is not UTF-8 fails the message. Bulk paths use
//! [`crate::wire::log_group`] instead, which copies nothing.

/// One log: a time and its key-value pairs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Log {
    /// Unix seconds, UTC.
    #[prost(uint32, required, tag = "1")]
    pub time: u32,
    #[prost(message, repeated, tag = "2")]
    pub contents: Vec<Content>,
    /// Nanoseconds within the second, 0 to 999,999,999.
    #[prost(fixed32, optional, tag = "4")]
    pub time_ns: Option<u32>,
}

/// One field of a log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Content {
    #[prost(string, required, tag = "1")]
    pub key: String,
    #[prost(string, required, tag = "2")]
    pub value: String,
}

/// A key-value pair that describes a whole group.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LogTag {
    #[prost(string, required, tag = "1")]
    pub key: String,
    #[prost(string, required, tag = "2")]
    pub value: String,
}

/// The body of one PutLogs request, and the unit in which PullLogs gives logs back.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LogGroup {
    #[prost(message, repeated, tag = "1")]
    pub logs: Vec<Log>,
    /// SLS's own; clients leave it out.
    #[prost(string, optional, tag = "2")]
    pub category: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub topic: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub source: Option<String>,
    #[prost(string, optional, tag = "5")]
    pub machine_uuid: Option<String>,
    #[prost(message, repeated, tag = "6")]
    pub log_tags: Vec<LogTag>,
}

/// The body of a PullLogs answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LogGroupList {
    #[prost(message, repeated, tag = "1")]
    pub log_groups: Vec<LogGroup>,
}
