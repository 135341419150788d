//! Fingerprints: a short name for a JSON that says the same wherever it is kept.

/// How many hex digits a fingerprint has: 64 bits tell a few conversions apart.
const DIGITS: usize = 16;

/// The first 16 hex digits of BLAKE3 over the JSON with sorted keys and without spaces. What comes
/// back from a `jsonb`, which sorts keys its own way, has the fingerprint of what went in.
pub fn fingerprint(json: &serde_json::Value) -> String {
    let mut sorted = json.clone();
    sorted.sort_all_objects();
    let mut hex = blake3::hash(sorted.to_string().as_bytes()).to_hex().to_string();
    hex.truncate(DIGITS);
    hex
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fingerprints_stay_what_they_are_for_they_live_in_sls() {
        let one = json!({"rules": 1, "columns": [{"name": "id", "kind": "uuid"}], "graph": true});
        let other = json!({"graph": true, "rules": 1, "columns": [{"kind": "uuid", "name": "id"}]});
        assert_eq!(fingerprint(&one), "4e020c0519d4532d");
        assert_eq!(fingerprint(&other), fingerprint(&one), "the order of keys is nothing");
        let reversed = json!({"rules": 1, "columns": [1, 2]});
        assert_ne!(fingerprint(&json!({"rules": 1, "columns": [2, 1]})), fingerprint(&reversed));
    }
}
