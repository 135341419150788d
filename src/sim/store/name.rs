//! The names that projects and logstores may have.

/// Whether `name` is one for a project or logstore: 3 to 63 lower-case letters, digits and
/// `others`, the latter neither first nor last.
pub fn is_name(name: &str, others: &[u8]) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    (3..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| plain(*byte) || others.contains(byte))
        && plain(bytes[0])
        && plain(bytes[bytes.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for (name, good) in [
            ("dify", true),
            ("d1-y", true),
            ("di", false),
            ("-dify", false),
            ("dify-", false),
            ("Dify", false),
            ("di_fy", false),
        ] {
            assert_eq!(is_name(name, b"-"), good, "{name}");
        }
        assert!(is_name("workflow_execution", b"-_"));
    }
}
