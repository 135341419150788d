//! Rows in the format of Postgres's binary COPY: a header, then for each row the number of fields
//! and each field behind its length, then a trailer (Postgres's documentation of COPY, "Binary
//! Format").

use uuid::Uuid;

use crate::record::timestamp::Timestamp;

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
const FLAGS_AND_EXTENSION: [u8; 8] = [0; 8];
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();
const NULL: [u8; 4] = (-1_i32).to_be_bytes();

/// The rows of one COPY. Fields follow one another; whoever writes them counts them.
pub(crate) struct CopyRows {
    bytes: Vec<u8>,
    rows: u64,
    text_bytes: u64,
}

impl CopyRows {
    pub(crate) fn new() -> Self {
        let bytes = [SIGNATURE, &FLAGS_AND_EXTENSION].concat();
        Self { bytes, rows: 0, text_bytes: 0 }
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// The bytes of the text fields so far.
    pub(crate) fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    /// What there is to send so far, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn into_copy(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&TRAILER);
        self.bytes
    }

    pub(crate) fn begin_row(&mut self, fields: i16) {
        self.bytes.extend_from_slice(&fields.to_be_bytes());
        self.rows += 1;
    }

    pub(crate) fn null(&mut self) {
        self.bytes.extend_from_slice(&NULL);
    }

    fn field(&mut self, value: &[u8]) {
        let length = i32::try_from(value.len()).expect("a field is smaller than 1 GB");
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(value);
    }

    pub(crate) fn uuid(&mut self, value: Uuid) {
        self.field(value.as_bytes());
    }

    pub(crate) fn integer(&mut self, value: i32) {
        self.field(&value.to_be_bytes());
    }

    pub(crate) fn bigint(&mut self, value: i64) {
        self.field(&value.to_be_bytes());
    }

    pub(crate) fn double(&mut self, value: f64) {
        self.field(&value.to_be_bytes());
    }

    pub(crate) fn timestamp(&mut self, value: Option<Timestamp>) {
        match value {
            Some(value) => self.field(&value.to_postgres().to_be_bytes()),
            None => self.null(),
        }
    }

    pub(crate) fn text(&mut self, value: &str) {
        self.text_bytes += value.len() as u64;
        self.field(value.as_bytes());
    }

    /// A text, or NULL for an empty one.
    pub(crate) fn text_or_null(&mut self, value: &str) {
        match value {
            "" => self.null(),
            value => self.text(value),
        }
    }
}
